import { Alert, Button, Group, NativeSelect, Stack, Switch, Text, TextInput } from '@mantine/core';
import Form from '@rjsf/core';
import {
  ADDITIONAL_PROPERTY_FLAG,
  type ArrayFieldItemTemplateProps,
  type ArrayFieldTemplateProps,
  type BaseInputTemplateProps,
  canExpand,
  type FieldTemplateProps,
  type ObjectFieldTemplateProps,
  type ValidatorType,
  type WidgetProps,
  type WrapIfAdditionalTemplateProps,
} from '@rjsf/utils';
import { type ReactNode, useState } from 'react';
import { marked } from './Pieces';
import { below } from '../pure/problems';
import { forForm, isObject, type Node, pruned, title, withoutOthers } from '../pure/schema';

const ROOT = 'spec';
/** What everybody sets comes first, and is open. */
const FIRST = ['model', 'datasets', 'adapters', 'method', 'tuner', 'training', 'nodes', 'replicas', 'resources', 'distribution', 'validation', 'checkpoint', 'output'];
const OPEN = new Set(['model', 'datasets', 'adapters', 'method', 'tuner', 'training', 'resources', 'limits']);

interface Context {
  problems: Record<string, string[]>;
}

/** Nothing is judged here: the API server does, by a dry run, with the rules between fields. */
const NO_VALIDATOR: ValidatorType = {
  validateFormData: () => ({ errors: [], errorSchema: {} }),
  isValid: () => true,
  rawValidation: () => ({}),
};

const keyOf = (id: string) => id.slice(ROOT.length + 1);

function wrong(registry: { formContext?: unknown }, id: string): string | undefined {
  const { problems } = registry.formContext as Context;
  return problems[keyOf(id)]?.join('; ');
}

function Input({ id, label, schema, value: given, required, placeholder, onChange, onBlur, registry, options }: BaseInputTemplateProps) {
  const number = schema.type === 'number' || schema.type === 'integer';
  // A number stays one: React then leaves alone what is typed of it, as 0.0 on the way to 0.01.
  const value = typeof given === 'string' || typeof given === 'number' ? given : '';
  const said = (text: string) => onChange(text === '' ? options.emptyValue : number && Number.isFinite(Number(text)) ? Number(text) : text);
  return (
    <TextInput
      id={id}
      size="sm"
      label={label}
      withAsterisk={required ?? false}
      description={marked(schema.description)}
      placeholder={placeholder ? `default: ${placeholder}` : ''}
      type={number ? 'number' : 'text'}
      step={schema.type === 'number' ? 'any' : 1}
      value={value}
      error={wrong(registry, id)}
      onChange={(event) => said(event.currentTarget.value)}
      onBlur={(event) => onBlur(id, event.currentTarget.value)}
    />
  );
}

function Choice({ id, label, schema, value, required, placeholder, onChange, registry }: WidgetProps) {
  const all = schema.enum as (string | number)[];
  const empty = placeholder ? `default: ${placeholder}` : required ? 'choose …' : 'not set';
  return (
    <NativeSelect
      id={id}
      size="sm"
      label={label}
      withAsterisk={required ?? false}
      description={marked(schema.description)}
      data={[{ value: '', label: empty }, ...all.map(String)]}
      value={value === undefined ? '' : String(value)}
      error={wrong(registry, id)}
      onChange={(event) => {
        const text = event.currentTarget.value;
        onChange(all.find((one) => String(one) === text));
      }}
    />
  );
}

function Toggle({ id, label, schema, value, placeholder, onChange, registry }: WidgetProps) {
  return (
    <Switch
      id={id}
      label={label}
      description={marked(schema.description)}
      checked={(value as boolean | undefined) ?? placeholder === 'true'}
      error={wrong(registry, id)}
      onChange={(event) => onChange(event.currentTarget.checked)}
    />
  );
}

/** A part of the form that opens. What is in it is made when it is opened first. */
function Part({ name, said, open, error, children }: { name: string; said?: string | undefined; open: boolean; error?: string; children: ReactNode }) {
  const [shown, setShown] = useState(open);
  const [made, setMade] = useState(open);
  return (
    <details
      className="part"
      open={shown}
      onToggle={(event) => {
        setShown(event.currentTarget.open);
        if (event.currentTarget.open) setMade(true);
      }}
    >
      <summary>
        {name}
        {said && <span className="quiet">{marked(said)}</span>}
        {error && (
          <Text span size="xs" ml={8} style={{ color: 'var(--mantine-color-error)' }}>
            {error}
          </Text>
        )}
      </summary>
      {made && <div>{children}</div>}
    </details>
  );
}

function ObjectPart({ fieldPathId, title: name, schema, properties, formData, onAddProperty, uiSchema, registry, optionalDataControl }: ObjectFieldTemplateProps) {
  const { $id: id, path } = fieldPathId;
  const many = typeof path.at(-1) === 'number';
  const body = (
    <Stack gap="sm">
      {properties.map((one) => one.content)}
      {optionalDataControl}
      {canExpand(schema, uiSchema, formData) && (
        <Button size="compact-sm" variant="light" onClick={onAddProperty} style={{ alignSelf: 'flex-start' }}>
          Add {schema.additionalProperties ? 'an entry' : ''}
        </Button>
      )}
    </Stack>
  );
  if (id === ROOT || many) return body;
  const { problems } = registry.formContext as unknown as Context;
  const error = [...(problems[keyOf(id)] ?? []), ...below(problems, keyOf(id))].join('; ');
  const filled = isObject(formData) && Object.keys(formData).length > 0;
  const last = String(path.at(-1));
  return (
    <Part name={name || title(last)} said={schema.description} open={(filled && path.length > 1) || OPEN.has(last)} error={error}>
      {body}
    </Part>
  );
}

function ListPart({ title: name, schema, items, canAdd, onAddClick, fieldPathId, registry }: ArrayFieldTemplateProps) {
  const id = fieldPathId.$id;
  const error = wrong(registry, id);
  return (
    <Part name={name} said={schema.description} open={items.length > 0 || OPEN.has(String(fieldPathId.path.at(-1)))} error={error ?? ''}>
      <Stack gap="sm">
        {items}
        {canAdd && (
          <Button size="compact-sm" variant="light" onClick={onAddClick} style={{ alignSelf: 'flex-start' }}>
            Add to {name.toLowerCase()}
          </Button>
        )}
      </Stack>
    </Part>
  );
}

function ListItem({ children, index, buttonsProps }: ArrayFieldItemTemplateProps) {
  return (
    <div className="item">
      <Group justify="space-between" mb={4}>
        <Text size="xs" className="quiet">
          {index + 1}
        </Text>
        {buttonsProps.hasRemove && (
          <Button size="compact-xs" variant="subtle" color="red" onClick={buttonsProps.onRemoveItem} aria-label={`Remove item ${index + 1}`}>
            Remove
          </Button>
        )}
      </Group>
      {children}
    </div>
  );
}

/** Labels, descriptions and errors are the widgets' own. */
function Field(props: FieldTemplateProps) {
  if (props.hidden) return null;
  return <Entry {...props}>{props.children}</Entry>;
}

/** An entry of a map, which has a name to change. */
function Entry({ id, label, schema, onKeyRenameBlur, onRemoveProperty, children }: WrapIfAdditionalTemplateProps) {
  if (!(ADDITIONAL_PROPERTY_FLAG in schema)) return children;
  return (
    <Group align="end" gap="xs" wrap="nowrap">
      <TextInput id={`${id}-key`} size="sm" label="Name" defaultValue={label} onBlur={onKeyRenameBlur} style={{ flex: 1 }} />
      <div style={{ flex: 1 }}>{children}</div>
      <Button size="compact-sm" mb={6} variant="subtle" color="red" onClick={onRemoveProperty} aria-label={`Remove ${label}`}>
        Remove
      </Button>
    </Group>
  );
}

interface Props {
  schema: Node;
  value: unknown;
  problems: Record<string, string[]>;
  onChange: (value: Record<string, unknown>) => void;
}

/** A form for a resource's spec, generated from its kind's schema. */
export function SchemaForm({ schema, value, problems, onChange }: Props) {
  const form = forForm(schema, value);
  const known = Object.keys(schema.properties ?? {});
  const order = [...FIRST.filter((one) => known.includes(one)), '*'];
  const general = problems[''] ?? [];
  return (
    <>
      {general.length > 0 && (
        <Alert color="red" role="alert" mb="sm">
          {general.map((one) => (
            <div key={one}>{one}</div>
          ))}
        </Alert>
      )}
      <Form
        tagName="div"
        idPrefix={ROOT}
        idSeparator="."
        schema={form.schema}
        uiSchema={{ ...form.ui, 'ui:order': order, 'ui:submitButtonOptions': { norender: true } }}
        formData={value}
        formContext={{ problems } satisfies Context}
        validator={NO_VALIDATOR}
        // eslint-disable-next-line @typescript-eslint/no-deprecated -- its successor is not there yet
        noValidate
        showErrorList={false}
        experimental_defaultFormStateBehavior={{ emptyObjectFields: 'skipEmptyDefaults', arrayMinItems: { populate: 'never' } }}
        templates={{
          BaseInputTemplate: Input,
          FieldTemplate: Field,
          ObjectFieldTemplate: ObjectPart,
          ArrayFieldTemplate: ListPart,
          ArrayFieldItemTemplate: ListItem,
          WrapIfAdditionalTemplate: Entry,
        }}
        widgets={{ SelectWidget: Choice, CheckboxWidget: Toggle }}
        onChange={({ formData }: { formData?: unknown }) => onChange(withoutOthers(schema, pruned(formData, schema, value)) as Record<string, unknown>)}
      />
    </>
  );
}
