import { describe, expect, test } from 'vitest';
import { aligned, extended, least, metrics, type Point, smoothed, summary } from '../src/pure/curve';
import { leaves, sideBySide } from '../src/pure/differences';
import { bytes, duration, short, tail } from '../src/pure/format';
import { Lines, piece, plain } from '../src/pure/lines';
import { addresses, deployable, deploymentOf, served, withData } from '../src/pure/make';
import { below, byField, parts } from '../src/pure/problems';
import { forForm, type Node, others, pruned, title, withoutOthers } from '../src/pure/schema';
import type { AdapterState, Manifest, Summary } from '../src/types';

const point = (step: number, loss = 1 / step, more: Record<string, number> = {}): Point => ({
  step, totalSteps: 10, loss, learningRate: 1e-4, tokensPerSecond: 10, metrics: more,
});

describe('a curve', () => {
  test('goes on from where an attempt was resumed, and what was lost goes', () => {
    const first = [1, 2, 3, 4].map((step) => point(step));
    const whole = extended(first, [point(3, 9), point(4, 8)]);
    expect(whole.map((one) => [one.step, one.loss])).toEqual([[1, 1], [2, 0.5], [3, 9], [4, 8]]);
  });

  test('shares its steps with others, with gaps where it has none', () => {
    expect(aligned([[point(1), point(3)], [point(2)]], 'loss')).toEqual([[1, 2, 3], [1, null, 1 / 3], [null, 0.5, null]]);
    expect(aligned([], 'loss')).toEqual([[]]);
  });

  test('offers each metric that any has, its own first', () => {
    expect(metrics([[point(1, 1, { rewards: 1 })], [point(2, 1, { accuracy: 2 })]])).toEqual([
      'loss', 'learning rate', 'tokens/s', 'accuracy', 'rewards',
    ]);
    expect(aligned([[point(1, 1, { rewards: 7 }), point(2)]], 'rewards')).toEqual([[1, 2], [7, null]]);
  });

  test('may be as long as a training is', () => {
    const long = Array.from({ length: 200_000 }, (_, at) => point(at + 1));
    const whole = extended(extended([], long.slice(0, 150_000)), long.slice(150_000));
    expect(whole.length).toBe(200_000);
    expect(summary('a', whole, 'loss')).toBe('a: loss from 1 at step 1 to 5e-6 at step 200000, least 5e-6');
    expect(least([])).toBeUndefined();
  });

  test('is told of by the steps that have the metric', () => {
    const points = [point(1), point(2, 1, { 'eval loss': 3 }), point(3), point(4, 1, { 'eval loss': 2 }), point(5)];
    expect(summary('a', points, 'eval loss')).toBe('a: eval loss from 3 at step 2 to 2 at step 4, least 2');
    expect(summary('a', points, 'kl')).toBe('a: no kl yet');
  });

  test('is smoothed by an exponential moving average', () => {
    expect(smoothed([1, null, 0, 0], 0.5)).toEqual([1, null, 0.5, 0.25]);
    expect(smoothed([3, 1, 2], 0)).toEqual([3, 1, 2]);
  });
});

describe('text that comes in pieces', () => {
  test('is cut into the same lines, wherever it is cut', () => {
    const text = 'one\ntwo\n\nthree';
    for (let at = 0; at <= text.length; at += 1) {
      const cut = new Lines();
      const found = [...cut.push(text.slice(0, at)), ...cut.push(text.slice(at)), ...cut.end()];
      expect(found).toEqual(['one', 'two', '', 'three']);
      expect(cut.end()).toEqual([]);
    }
  });

  test('of a log is without what only terminals read', () => {
    expect(plain('\u001b[1;36m(EngineCore pid=7)\u001b[0;0m ready')).toBe('(EngineCore pid=7) ready');
    expect(plain('  0%|   | 0/2\r 50%|#  | 1/2\r100%|###| 2/2\r')).toBe('100%|###| 2/2');
    expect(plain('\u001b]8;;http://a\u0007a\u001b]8;;\u0007 [0] <b>')).toBe('a [0] <b>');
  });

  test('of a chat completion is its words', () => {
    expect(piece('data: {"choices":[{"delta":{"content":"hi"}}]}')).toBe('hi');
    for (const line of ['', ': ping', 'data: [DONE]', 'data: {"choices":[]}', 'data: {"choices":[{"delta":{"role":"assistant"}}]}']) {
      expect(piece(line)).toBeNull();
    }
    expect(() => piece('data: {"error":{"message":"out of memory"}}')).toThrow('out of memory');
  });
});

describe('what is wrong', () => {
  test('is shown at its field', () => {
    const found = byField([
      { path: 'spec.datasets[0].uri', message: 'a' },
      { path: 'spec.datasets[0].uri', message: 'b' },
      { path: 'metadata.labels', message: 'c' },
      { path: '', message: 'd' },
      { path: 'spec', message: 'e' },
    ]);
    expect(found).toEqual({ 'datasets.0.uri': ['a', 'b'], '': ['metadata.labels: c', 'd', 'spec: e'] });
    expect(below(found, 'datasets')).toEqual(['datasets.0.uri: a', 'datasets.0.uri: b']);
    expect(below(found, 'data')).toEqual([]);
    expect(parts('spec.datasets[0].uri')).toEqual(['spec', 'datasets', '0', 'uri']);
  });
});

describe('numbers for people', () => {
  test.each([[0, '0'], [0.033333333, '0.03333'], [1e-4, '1e-4'], [2.5e-5, '2.5e-5'], [12345.6, '12350'], [2e6, '2e6'], [-1.5, '-1.5'], [NaN, '–'], [undefined, '–']])(
    '%s is %s', (value, text) => { expect(short(value)).toBe(text); });
  test.each([[0, '0 B'], [1023, '1023 B'], [1536, '1.5 KiB'], [80 * 2 ** 30, '80.0 GiB'], [2 ** 50, '1024 TiB']])(
    '%s bytes are %s', (value, text) => { expect(bytes(value)).toBe(text); });
  test.each([[0, '0s'], [59.6, '1m'], [3723, '1h2m'], [90000, '1d1h'], [86400, '1d'], [-5, '0s']])(
    '%s seconds are %s', (value, text) => { expect(duration(value)).toBe(text); });
  test.each([['hf://org/name@rev', 'name@rev'], ['pvc://claim/a/', 'a'], ['x', 'x']])(
    'the end of %s is %s', (value, text) => { expect(tail(value)).toBe(text); });
});

const METHOD: Node = {
  type: 'object',
  required: ['type'],
  properties: {
    type: { type: 'string', enum: ['SFT', 'DPO'] },
    sft: { type: 'object', properties: { packing: { type: 'boolean', default: false } } },
    dpo: { type: 'object', properties: { beta: { type: 'number', default: 0.1, minimum: 0 } } },
  },
};

describe('a form of a schema', () => {
  test('shows of a union the member of its type only', () => {
    expect([...others(METHOD, { type: 'DPO' })]).toEqual(['sft']);
    const { schema, ui } = forForm(METHOD, { type: 'DPO' }, 'method');
    expect(Object.keys(schema.properties ?? {})).toEqual(['type', 'dpo']);
    expect(ui).toMatchObject({ dpo: { beta: { 'ui:placeholder': '0.1' } } });
    // Defaults are hints: what is not set stays out of the resource.
    expect(JSON.stringify(schema)).not.toContain('default');
  });

  test('drops the other member when the type is changed, and nothing else', () => {
    const spec: Node = { type: 'object', properties: { method: METHOD, nodes: { type: 'integer' } } };
    const value = { method: { type: 'DPO', sft: { packing: true }, dpo: { beta: 1 } }, nodes: 2, unknown: 1 };
    expect(withoutOthers(spec, value)).toEqual({ method: { type: 'DPO', dpo: { beta: 1 } }, nodes: 2, unknown: 1 });
  });

  test('leaves nothing behind where nothing was entered', () => {
    expect(pruned({ a: '', b: {}, c: { d: undefined }, e: [{ f: '' }], g: 0, h: false })).toEqual({ e: [{}], g: 0, h: false });
  });

  test('keeps what is meant to be empty, and entries of maps and lists while they are typed', () => {
    const text: Node = { type: 'string' };
    const spec: Node = {
      type: 'object',
      properties: {
        gateway: { type: 'object', properties: { replicas: { type: 'integer' } } },
        limits: { type: 'object', additionalProperties: { 'x-kubernetes-int-or-string': true } },
        modules: { type: 'array', items: text },
        datasets: { type: 'array', items: { type: 'object', properties: { uri: text } } },
        pod: { type: 'object', 'x-kubernetes-preserve-unknown-fields': true },
      },
    };
    const before = { gateway: {}, pod: { emptyDir: {} } };
    const typed = { ...before, limits: { gpu: undefined, memory: '' }, modules: [undefined, ''], datasets: [undefined] };
    expect(pruned(typed, spec, before)).toEqual({ ...before, limits: { gpu: '', memory: '' }, modules: ['', ''], datasets: [{}] });
    expect(pruned({ gateway: { replicas: undefined } }, spec, { gateway: { replicas: 2 } })).toEqual({});
  });

  test('begins an entry of a map with nothing', () => {
    const { schema } = forForm({ type: 'object', additionalProperties: { 'x-kubernetes-int-or-string': true } }, {});
    expect(schema.additionalProperties).toEqual({ type: 'string', default: '' });
  });

  test('leaves to the YAML what has no schema', () => {
    const node: Node = { type: 'object', required: ['a'], properties: { a: { type: 'object', 'x-kubernetes-preserve-unknown-fields': true }, b: { type: 'string' } } };
    const { schema } = forForm(node, {});
    expect(Object.keys(schema.properties ?? {})).toEqual(['b']);
    expect(schema.required).toEqual([]);
  });

  test('has words for names', () => {
    expect(title('learningRate')).toBe('Learning rate');
  });
});

describe('jobs side by side', () => {
  test('differ by leaves', () => {
    expect(leaves({ a: [{ b: 1 }], c: true })).toEqual({ 'a[0].b': '1', c: 'true' });
    expect(sideBySide([{ a: 1, b: 2 }, { a: 1, c: 3 }])).toEqual([
      { path: 'a', values: ['1', '1'], same: true },
      { path: 'b', values: ['2', ''], same: false },
      { path: 'c', values: ['', '3'], same: false },
    ]);
  });
});

describe('a deployment of what a job makes', () => {
  const job = (kind: Manifest['kind'], spec: Record<string, unknown>): Manifest => ({
    apiVersion: 'tunesmith.io/v1alpha1', kind, metadata: { name: 'mine', resourceVersion: '7' }, spec,
  });
  const model = { uri: 'hf://org/base', secretRef: { name: 'token' } };

  test('serves the base as the job has it, with the adapter under the name of the job', () => {
    const made = deploymentOf(job('FineTuneJob', { model, resources: { limits: { 'nvidia.com/gpu': 8, memory: '1Ti' } } }));
    expect(made).toEqual({
      apiVersion: 'tunesmith.io/v1alpha1', kind: 'ModelDeployment', metadata: { name: 'mine' },
      spec: {
        model, adapters: [{ name: 'mine', fineTuneJobRef: { name: 'mine' } }], resources: { limits: { 'nvidia.com/gpu': 1 } },
      },
    });
  });

  test('serves a whole model where the job makes one', () => {
    expect(deploymentOf(job('FineTuneJob', { model, tuner: { type: 'Full' } })).spec).toEqual({ model: { fineTuneJobRef: { name: 'mine' } } });
    expect(deploymentOf(job('MergeJob', { model })).spec).toEqual({ model: { mergeJobRef: { name: 'mine' } } });
  });

  test('is offered for what an engine serves', () => {
    const lora = { kind: 'FineTuneJob', state: 'running', method: 'DPO', tuner: 'LoRA' } as const;
    expect(deployable(lora)).toBe(true);
    expect(deployable({ ...lora, state: 'failed' })).toBe(false);
    expect(deployable({ ...lora, method: 'Classification' })).toBe(false);
    expect(deployable({ ...lora, method: 'Classification', tuner: 'Full' })).toBe(true);
    expect(deployable({ kind: 'MergeJob', state: 'done' })).toBe(true);
    expect(deployable({ kind: 'InferenceJob', state: 'done' })).toBe(false);
    expect(deployable({ kind: 'FineTuneJob', state: 'unknown' })).toBe(false);
  });

  test('is asked for its own model and the adapters that are ready, unless it cannot be read', () => {
    const head = { namespace: 'a', created: null, model: '', reason: '', message: '' };
    const adapters: AdapterState[] = [{ name: 'polite', state: 'Ready' }, { name: 'late', state: 'Waiting' }];
    const chat: Summary = { ...head, kind: 'ModelDeployment', name: 'chat', state: 'done', modelName: 'base', adapters };
    const odd: Summary = { ...head, kind: 'ModelDeployment', name: 'odd', state: 'unknown' };
    expect(served([chat, odd, { ...odd, kind: 'MergeJob', state: 'done' }])).toEqual(['chat/base', 'chat/polite']);
  });
});

describe('uploaded data', () => {
  const known = [{ uri: 'configmap://a/x', columns: { query: 'q' } }, { uri: 'hf://org/data' }];

  test('takes the place of a dataset, whose other settings stay', () => {
    expect(withData(known, 0, 'configmap://b/y')).toEqual([{ uri: 'configmap://b/y', columns: { query: 'q' } }, { uri: 'hf://org/data' }]);
  });

  test('is one more where that is wanted, or where there is none', () => {
    expect(withData(known, 2, 'configmap://b/y')).toEqual([...known, { uri: 'configmap://b/y' }]);
    expect(withData(undefined, 0, 'configmap://b/y')).toEqual([{ uri: 'configmap://b/y' }]);
  });

  test('is chosen a place for by the addresses that are there', () => {
    expect(addresses([...known, 'nonsense', {}])).toEqual(['configmap://a/x', 'hf://org/data', '', '']);
    expect(addresses(undefined)).toEqual([]);
  });
});
