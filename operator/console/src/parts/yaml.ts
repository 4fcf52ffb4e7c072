import { dump } from 'js-yaml';

export function yaml(value: unknown): string {
  return dump(value, { lineWidth: 110, noRefs: true });
}
