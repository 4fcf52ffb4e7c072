import type { Manifest, Summary } from '../types';
import { isObject } from './schema';

/** The datasets of a spec with `uri` in place of one's address, whose other settings stay; or, at the end, as one more. */
export function withData(datasets: unknown, at: number, uri: string): unknown[] {
  const found: unknown[] = Array.isArray(datasets) ? datasets : [];
  if (at >= found.length) return [...found, { uri }];
  return found.map((one, index) => (index === at ? { ...(isObject(one) ? one : {}), uri } : one));
}

/** Addresses of a spec's datasets. */
export function addresses(datasets: unknown): string[] {
  const found: unknown[] = Array.isArray(datasets) ? datasets : [];
  return found.map((one) => (isObject(one) && typeof one['uri'] === 'string' ? one['uri'] : ''));
}

/** Methods whose adapters bring a head, which engines serve as a part of a whole model only. */
const HEADS = new Set(['Classification', 'Embedding', 'Reranker', 'RewardModel']);

/** Whether an engine serves what a job makes, as it is. */
export function deployable({ kind, state, method = '', tuner }: Pick<Summary, 'kind' | 'state' | 'method' | 'tuner'>): boolean {
  if (state === 'failed' || state === 'unknown') return false;
  return kind === 'MergeJob' || (kind === 'FineTuneJob' && (tuner === 'Full' || !HEADS.has(method)));
}

/** "deployment/model" of everything that is served. */
export function served(found: Summary[]): string[] {
  return found
    .filter((one) => one.kind === 'ModelDeployment' && one.state !== 'unknown')
    .flatMap((one) => {
      const adapters = Array.isArray(one.adapters) ? one.adapters.filter((adapter) => adapter.state === 'Ready') : [];
      return [one.modelName ?? one.name, ...adapters.map((adapter) => adapter.name)].map((model) => `${one.name}/${model}`);
    });
}

/**
 * A deployment of what a job makes: of the base with the adapter, or of the whole model. It may be made before the job
 * is done. Of the job's devices it asks for one of each kind.
 */
export function deploymentOf(job: Manifest): Manifest {
  const { kind, spec, metadata } = job;
  const own = { [`${kind.charAt(0).toLowerCase()}${kind.slice(1)}Ref`]: { name: metadata.name } };
  const tuner = isObject(spec['tuner']) ? spec['tuner']['type'] : undefined;
  const whole = kind === 'MergeJob' || tuner === 'Full';
  const served = whole ? { model: own } : { model: spec['model'], adapters: [{ name: metadata.name, ...own }] };
  const limits = isObject(spec['resources']) && isObject(spec['resources']['limits']) ? spec['resources']['limits'] : {};
  const devices = Object.keys(limits).filter((name) => name.includes('/'));
  const resources = devices.length ? { resources: { limits: Object.fromEntries(devices.map((name) => [name, 1])) } } : {};
  return { apiVersion: job.apiVersion, kind: 'ModelDeployment', metadata: { name: metadata.name }, spec: { ...served, ...resources } };
}
