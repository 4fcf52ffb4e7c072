import { Alert, Button, Group, NativeSelect, Stack, Text, Textarea, TextInput } from '@mantine/core';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { load } from 'js-yaml';
import { useState } from 'react';
import { useLocation } from 'wouter';
import { get, Refusal, send, space } from '../api';
import { useSettled, useTitle } from '../hooks';
import { MemoryBar } from '../parts/Memory';
import { Failure, Head, Sheet, Spoken, Waiting } from '../parts/Pieces';
import { SchemaForm } from '../parts/SchemaForm';
import { Upload } from '../parts/Upload';
import { yaml } from '../parts/yaml';
import { deploymentOf, withData } from '../pure/make';
import { byField, type Problem } from '../pure/problems';
import { isObject, type Node } from '../pure/schema';
import { PLURALS, type Check, type Detail, type Manifest, type Starter } from '../types';

const SETTLE_MS = 600;

interface Props {
  namespace: string;
  /** A method, a kind, or like, edit or deploy:PLURAL:NAME. */
  start: string;
}

/** A new resource, or a change of one: form and YAML of the same thing, and what it would become. */
export default function New({ namespace, start }: Props) {
  const [verb, plural = '', name = ''] = start.split(':');
  const starters = useQuery({ queryKey: ['starters'], queryFn: ({ signal }) => get<Starter[]>('starters', signal), staleTime: Infinity });
  const from = useQuery({
    queryKey: ['from', namespace, start],
    queryFn: ({ signal }) => get<Detail>(`${space(namespace)}/${plural}/${name}`, signal),
    enabled: name !== '',
    staleTime: Infinity,
    gcTime: 0,
  });
  const error = starters.error ?? from.error;
  if (error) return <Failure error={error} />;
  if (!starters.data || (name && !from.data)) return <Waiting />;
  const edit = verb === 'edit';
  const body = from.data ? (verb === 'deploy' ? deploymentOf(from.data.resource) : taken(from.data, edit)) : starters.data.find((one) => one.what === start)?.body;
  if (!body) return <Alert color="red">There is no starter for {start}.</Alert>;
  return <Editor key={start} namespace={namespace} start={start} starters={starters.data} body={body} edit={edit} />;
}

/** A resource as one begins with it: without what the API server added. */
function taken({ resource }: Detail, edit: boolean): Manifest {
  const { apiVersion, kind, metadata, spec } = resource;
  const version = edit && metadata.resourceVersion ? { resourceVersion: metadata.resourceVersion } : {};
  const rest = Object.fromEntries(Object.entries(spec).filter(([key]) => key !== 'suspend'));
  return { apiVersion, kind, metadata: { name: edit ? metadata.name : `${metadata.name}-2`, ...version }, spec: edit ? spec : rest };
}

interface EditorProps extends Props {
  starters: Starter[];
  body: Manifest;
  edit: boolean;
}

function Editor({ namespace, start, starters, body: first, edit }: EditorProps) {
  const [body, setBody] = useState(first);
  const [text, setText] = useState(() => yaml(first));
  const [broken, setBroken] = useState('');
  const [config, setConfig] = useState('');
  const [, go] = useLocation();
  const queries = useQueryClient();
  const { kind } = body;
  useTitle(edit ? `Edit ${body.metadata.name}` : `New ${kind}`);
  const schema = useQuery({ queryKey: ['schema', kind], queryFn: ({ signal }) => get<Node>(`schemas/${kind}`, signal), staleTime: Infinity });
  const asked = JSON.stringify({ resource: body, new: !edit, ...parsed(config) });
  const settled = useSettled(asked, SETTLE_MS);
  const check = useQuery({
    queryKey: ['check', namespace, settled],
    queryFn: ({ signal }) => send<Check>('POST', `${space(namespace)}/check`, JSON.parse(settled), signal),
    placeholderData: (old) => old,
    gcTime: 0,
  });
  const apply = useMutation({
    mutationFn: () =>
      edit
        ? send('PUT', `${space(namespace)}/${PLURALS[first.kind]}/${first.metadata.name}`, body)
        : send('POST', `${space(namespace)}/resources`, body),
    onSuccess: () => {
      void queries.invalidateQueries();
      go(`/${namespace}/${PLURALS[kind]}/${body.metadata.name}`);
    },
  });
  const refused: Problem[] = apply.error instanceof Refusal ? apply.error.problems : [];
  const problems = [...(check.data?.problems ?? []), ...refused];
  const fields = byField(problems.filter((one) => one.path !== 'metadata.name'));
  const nameProblem = problems.filter((one) => one.path === 'metadata.name').map((one) => one.message);
  const change = (next: Manifest) => {
    apply.reset();
    setBody(next);
    setText(yaml(next));
    setBroken('');
  };
  const typed = (next: string) => {
    setText(next);
    try {
      const found = load(next);
      if (!isObject(found) || !isObject(found['metadata']) || !isObject(found['spec']) || !(String(found['kind']) in PLURALS)) {
        throw new Error('expected apiVersion, kind, metadata and spec of a kind of tunesmith');
      }
      apply.reset();
      setBody(found as unknown as Manifest);
      setBroken('');
    } catch (error) {
      setBroken(error instanceof Error ? error.message : String(error));
    }
  };
  return (
    <>
      <Head title={edit ? `Edit ${body.metadata.name}` : `New ${kind}`}>
        <Button
          onClick={() => apply.mutate()}
          loading={apply.isPending}
          disabled={broken !== '' || problems.length > 0 || settled !== asked || check.isFetching || !check.data}
        >
          {edit ? 'Apply' : 'Create'}
        </Button>
      </Head>
      <Failure error={apply.error} />
      <Spoken text={problems.length ? `${problems.length} problems: ${problems.map((one) => `${one.path} ${one.message}`).join('; ')}` : 'No problems'} />
      <div className="split">
        <Sheet title="Form">
          <Stack gap="sm">
            {!edit && (
              <NativeSelect
                label="Begin with"
                description={starters.find((one) => one.what === start)?.about}
                data={[
                  { group: 'FineTuneJob by method', items: starters.filter((one) => one.body.kind === 'FineTuneJob').map((one) => one.what) },
                  { group: 'Other kinds', items: starters.filter((one) => one.body.kind !== 'FineTuneJob').map((one) => one.what) },
                  ...(start.includes(':') ? [{ value: start, label: start.split(':').pop() ?? start }] : []),
                ]}
                value={start}
                onChange={(event) => go(`/${namespace}/new/${event.currentTarget.value}`)}
              />
            )}
            <TextInput
              label="Name"
              withAsterisk
              value={body.metadata.name}
              disabled={edit}
              error={nameProblem.join('; ') || undefined}
              onChange={(event) => change({ ...body, metadata: { ...body.metadata, name: event.currentTarget.value } })}
            />
            {'datasets' in (schema.data?.properties ?? {}) && (
              <Upload
                namespace={namespace}
                datasets={body.spec['datasets']}
                put={(uri, at) => change({ ...body, spec: { ...body.spec, datasets: withData(body.spec['datasets'], at, uri) } })}
              />
            )}
            {schema.data ? (
              <SchemaForm schema={schema.data} value={body.spec} problems={fields} onChange={(spec) => change({ ...body, spec })} />
            ) : (
              <Waiting />
            )}
          </Stack>
        </Sheet>
        <div className="aside">
          <Stack>
            <Sheet title="What it needs" aside={<Text size="xs" className="quiet">{check.isFetching ? 'checking …' : 'checked by the API server'}</Text>}>
              <Outlook check={check.data} error={check.error} problems={problems} config={config} setConfig={setConfig} training={kind === 'FineTuneJob'} />
            </Sheet>
            <Sheet
              title="YAML"
              aside={
                <Copy text={text} />
              }
            >
              <Textarea
                className="yaml"
                aria-label="YAML"
                spellCheck={false}
                rows={Math.min(34, Math.max(12, text.split('\n').length))}
                value={text}
                error={broken || undefined}
                onChange={(event) => typed(event.currentTarget.value)}
              />
            </Sheet>
          </Stack>
        </div>
      </div>
    </>
  );
}

/** Browsers have a clipboard for pages that came by HTTPS, or from this machine. */
function Copy({ text }: { text: string }) {
  const clipboard = navigator.clipboard as Clipboard | undefined;
  if (!clipboard) return null;
  return (
    <Button size="compact-xs" variant="subtle" onClick={() => void clipboard.writeText(text)}>
      Copy
    </Button>
  );
}

function parsed(config: string): { config?: unknown } {
  if (!config.trim()) return {};
  try {
    const found: unknown = JSON.parse(config);
    return isObject(found) ? { config: found } : {};
  } catch {
    return {};
  }
}

interface OutlookProps {
  check: Check | undefined;
  error: unknown;
  problems: Problem[];
  config: string;
  setConfig: (text: string) => void;
  training: boolean;
}

/** What the API server says, the estimate, and what would be made. */
function Outlook({ check, error, problems, config, setConfig, training }: OutlookProps) {
  if (error) return <Failure error={error} />;
  if (!check) return <Waiting />;
  return (
    <Stack gap="sm">
      {problems.length > 0 && (
        <Alert color="red" title={problems.length === 1 ? 'One thing is wrong' : `${problems.length} things are wrong`}>
          {problems.map((one) => (
            <div key={`${one.path}${one.message}`} style={{ overflowWrap: 'anywhere' }}>
              {one.path && <b>{one.path}: </b>}
              {one.message}
            </div>
          ))}
        </Alert>
      )}
      {check.memory && <MemoryBar memory={check.memory} />}
      {check.notes?.map((one) => (
        <Text key={one} size="sm" className="quiet" style={{ overflowWrap: 'anywhere' }}>
          {one}
        </Text>
      ))}
      {training && (
        <details className="part" open={!check.memory && problems.length === 0}>
          <summary>The model’s config.json, for the estimate</summary>
          <div>
            <Textarea
              className="yaml"
              size="xs"
              rows={5}
              aria-label="config.json of the model"
              placeholder='{"model_type": "qwen2", "hidden_size": 896, …}'
              value={config}
              error={config.trim() && !parsed(config).config ? 'this is not a JSON object' : undefined}
              onChange={(event) => setConfig(event.currentTarget.value)}
            />
          </div>
        </details>
      )}
      <Group gap="xs" grow align="start">
        {check.plan ? <Shown name="Plan">{yaml(check.plan)}</Shown> : null}
        {check.objects?.length ? <Shown name={`Objects (${check.objects.length})`}>{check.objects.map(yaml).join('---\n')}</Shown> : null}
      </Group>
    </Stack>
  );
}

function Shown({ name, children }: { name: string; children: string }) {
  return (
    <details className="part">
      <summary>{name}</summary>
      <div>
        {/* eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex */}
        <pre className="text" tabIndex={0} aria-label={name}>
          {children}
        </pre>
      </div>
    </details>
  );
}
