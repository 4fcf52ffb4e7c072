import { isObject } from './schema';

/** Leaves of a value by their path: {"tuner.rank": "8"} */
export function leaves(value: unknown, path = ''): Record<string, string> {
  if (Array.isArray(value)) {
    return Object.assign({}, ...value.map((one, at) => leaves(one, `${path}[${at}]`))) as Record<string, string>;
  }
  if (isObject(value)) {
    const below = Object.entries(value).map(([key, one]) => leaves(one, path ? `${path}.${key}` : key));
    return Object.assign({}, ...below) as Record<string, string>;
  }
  return { [path]: String(value) };
}

export interface Row {
  path: string;
  values: string[];
  same: boolean;
}

/** The leaves of several values side by side, by path; what one does not have is empty. */
export function sideBySide(values: readonly unknown[]): Row[] {
  const all = values.map((one) => leaves(one));
  const paths = [...new Set(all.flatMap((one) => Object.keys(one)))].sort();
  return paths.map((path) => {
    const cells = all.map((one) => one[path] ?? '');
    return { path, values: cells, same: new Set(cells).size <= 1 };
  });
}
