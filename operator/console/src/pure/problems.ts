/** What is wrong with a resource, and at which field: spec.datasets[0].uri; empty where it is no field's. */
export interface Problem {
  path: string;
  message: string;
}

/** The parts of a path: spec.datasets[0].uri -> [spec, datasets, 0, uri] */
export function parts(path: string): string[] {
  return path.split(/[.[\]]+/).filter((part) => part !== '');
}

/** Messages by the path of a field of the spec: {"datasets.0.uri": […]}. Those of no field of it are under "". */
export function byField(problems: readonly Problem[]): Record<string, string[]> {
  const found: Record<string, string[]> = {};
  for (const { path, message } of problems) {
    const [head, ...rest] = parts(path);
    const key = head === 'spec' ? rest.join('.') : '';
    const text = key || !path ? message : `${path}: ${message}`;
    found[key] = [...(found[key] ?? []), text];
  }
  return found;
}

/** Messages of a field and of what is below it, where the form may not show that. */
export function below(found: Record<string, string[]>, field: string): string[] {
  return Object.entries(found)
    .filter(([key]) => key !== '' && key.startsWith(`${field}.`))
    .flatMap(([key, messages]) => messages.map((text) => `${key}: ${text}`));
}
