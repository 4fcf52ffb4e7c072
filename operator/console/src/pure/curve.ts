import { short } from './format';

/** One step of a training, as the server sends it. */
export interface Point {
  step: number;
  totalSteps: number;
  loss: number;
  learningRate: number;
  tokensPerSecond: number;
  metrics: Record<string, number>;
}

export type Points = readonly Point[];

/** A curve with more points. Steps that are later than one of them are of an attempt that was lost, and go. */
export function extended(points: Points, more: Points): Points {
  const found = [...points];
  for (const point of more) {
    while ((found.at(-1)?.step ?? -1) >= point.step) found.pop();
    found.push(point);
  }
  return found;
}

const OWN: Record<string, (point: Point) => number> = {
  loss: (point) => point.loss,
  'learning rate': (point) => point.learningRate,
  'tokens/s': (point) => point.tokensPerSecond,
};

/** What can be drawn of these curves. */
export function metrics(curves: readonly Points[]): string[] {
  const more = new Set<string>();
  for (const points of curves) for (const point of points) for (const name of Object.keys(point.metrics)) more.add(name);
  return [...Object.keys(OWN), ...[...more].sort()];
}

export function value(point: Point, metric: string): number | null {
  return OWN[metric]?.(point) ?? point.metrics[metric] ?? null;
}

/** The least of any number of values; undefined of none. */
export function least(values: readonly number[]): number | undefined {
  return values.reduce<number | undefined>((found, one) => (found === undefined || one < found ? one : found), undefined);
}

/** What a curve says of a metric, in words. */
export function summary(name: string, points: Points, metric: string): string {
  const known = points.flatMap((point) => {
    const one = value(point, metric);
    return one === null ? [] : [{ step: point.step, one }];
  });
  const [first, last] = [known[0], known.at(-1)];
  if (!first || !last) return `${name}: no ${metric} yet`;
  const from = `${metric} from ${short(first.one)} at step ${first.step}`;
  return `${name}: ${from} to ${short(last.one)} at step ${last.step}, least ${short(least(known.map(({ one }) => one)))}`;
}

/** Curves over the steps that any of them has, as uPlot wants them: steps, then each one's values or null. */
export function aligned(curves: readonly Points[], metric: string): [number[], ...(number | null)[][]] {
  const steps = [...new Set(curves.flatMap((points) => points.map((point) => point.step)))].sort((a, b) => a - b);
  const rows = curves.map((points) => {
    const known = new Map(points.map((point) => [point.step, value(point, metric)]));
    return steps.map((step) => known.get(step) ?? null);
  });
  return [steps, ...rows];
}

/** Exponential moving average; gaps stay gaps. `weight` 0: as it is. */
export function smoothed(values: readonly (number | null)[], weight: number): (number | null)[] {
  let last: number | null = null;
  return values.map((one) => {
    if (one === null) return null;
    last = last === null ? one : weight * last + (1 - weight) * one;
    return last;
  });
}
