import type { RJSFSchema, UiSchema } from '@rjsf/utils';

/** A structural schema of a CRD. */
export interface Node {
  type?: string;
  description?: string;
  default?: unknown;
  enum?: unknown[];
  required?: string[];
  properties?: Record<string, Node>;
  items?: Node;
  additionalProperties?: Node | boolean;
  minimum?: number;
  maximum?: number;
  minItems?: number;
  'x-kubernetes-int-or-string'?: boolean;
  'x-kubernetes-preserve-unknown-fields'?: boolean;
}

type Value = Record<string, unknown>;

export interface FormSchema {
  schema: RJSFSchema;
  ui: UiSchema;
}

/** learningRate -> Learning rate */
export function title(name: string): string {
  const words = name.replace(/([a-z0-9])([A-Z])/g, (_, left: string, right: string) => `${left} ${right.toLowerCase()}`);
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** Members of a union, `{type: DPO, dpo: {…}}`, that are not of its type. */
export function others(node: Node, value: Value | undefined): Set<string> {
  const names = Object.keys(node.properties ?? {});
  const type = node.properties?.['type'];
  const chosen = typeof value?.['type'] === 'string' ? value['type'] : type?.default;
  const types = (type?.enum ?? []).map((one) => String(one).toLowerCase());
  return new Set(
    names.filter((name) => types.includes(name.toLowerCase()) && name.toLowerCase() !== String(chosen).toLowerCase()),
  );
}

/**
 * A CRD's schema as one for a form of `value`. Defaults become hints, not values: what is not set stays out of the
 * resource. Of unions, the members of other types are left out, and so is what has no schema: the YAML takes it.
 */
export function forForm(node: Node, value: unknown, name = '', many = false): FormSchema {
  const ui: UiSchema = {};
  const schema: RJSFSchema = { title: title(name) };
  if (node.description) schema.description = node.description;
  if (node['x-kubernetes-int-or-string']) return { schema: { ...schema, type: 'string' }, ui };
  if (node.enum) schema.enum = node.enum as (string | number)[];
  if (node.minimum !== undefined) schema.minimum = node.minimum;
  if (node.maximum !== undefined) schema.maximum = node.maximum;
  const own = node.default;
  if (typeof own === 'string' || typeof own === 'number' || typeof own === 'boolean') ui['ui:placeholder'] = String(own);
  schema.type = node.type as NonNullable<RJSFSchema['type']>;
  if (node.type === 'array') {
    const inner = forForm(node.items ?? { type: 'string' }, undefined, 'item', true);
    schema.items = inner.schema;
    ui['items'] = inner.ui;
  }
  if (node.type === 'object') {
    const given = isObject(value) ? value : undefined;
    const hidden = many ? new Set<string>() : others(node, given);
    schema.properties = {};
    for (const [key, child] of Object.entries(node.properties ?? {})) {
      if (hidden.has(key) || opaque(child)) continue;
      const inner = forForm(child, given?.[key], key, many);
      schema.properties[key] = inner.schema;
      ui[key] = inner.ui;
    }
    if (node.required) schema.required = node.required.filter((key) => key in (schema.properties ?? {}));
    if (typeof node.additionalProperties === 'object' && !node.properties) {
      const inner = forForm(node.additionalProperties, undefined, '', true);
      delete inner.schema.title;
      // Of a new entry, in place of words that could be taken for it.
      if (inner.schema.type === 'string') inner.schema.default = '';
      schema.additionalProperties = inner.schema;
      ui['additionalProperties'] = inner.ui;
    }
  }
  return { schema, ui };
}

function opaque(node: Node): boolean {
  if (node.type === 'array') return node.items !== undefined && opaque(node.items);
  return node.type === 'object' && !node.properties && typeof node.additionalProperties !== 'object';
}

export function isObject(value: unknown): value is Value {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/**
 * A value without what a form leaves behind where nothing was entered: undefined, empty texts, and objects of nothing.
 * What was empty `before`, as `gateway: {}`, was meant. So is an entry of a map or list, which has a way to remove it.
 */
export function pruned(value: unknown, node: Node = {}, before?: unknown): unknown {
  if (opaque(node)) return value;
  if (Array.isArray(value)) {
    const old: unknown[] = Array.isArray(before) ? before : [];
    return value.map((one, at) => pruned(one, node.items, old[at]) ?? (node.items?.type === 'object' ? {} : ''));
  }
  if (!isObject(value)) return value;
  const old = isObject(before) ? before : {};
  const entry = !node.properties && typeof node.additionalProperties === 'object' ? node.additionalProperties : null;
  const kept = Object.entries(value)
    .map(([key, one]) => [key, pruned(one, entry ?? node.properties?.[key], old[key]) ?? (entry ? '' : undefined)] as const)
    .filter(([key, one]) => one !== undefined && (entry !== null || !nothing(one) || nothing(old[key])));
  return Object.fromEntries(kept);
}

function nothing(value: unknown): boolean {
  return value === '' || (isObject(value) && Object.keys(value).length === 0);
}

/** The member that a union's type has no use for any more goes with a change of the type. */
export function withoutOthers(node: Node, value: unknown): unknown {
  if (!isObject(value) || !node.properties) return value;
  const gone = others(node, value);
  return Object.fromEntries(
    Object.entries(value)
      .filter(([key]) => !gone.has(key))
      .map(([key, one]) => [key, withoutOthers(node.properties?.[key] ?? {}, one)]),
  );
}
