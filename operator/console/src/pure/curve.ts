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

/** A curve with one more point. Later steps are of an attempt that was lost, and go. */
export function add(points: Points, point: Point): Points {
  let end = points.length;
  while (end > 0 && (points[end - 1]?.step ?? 0) >= point.step) end -= 1;
  return [...points.slice(0, end), point];
}

const OWN: Record<string, (point: Point) => number> = {
  loss: (point) => point.loss,
  'learning rate': (point) => point.learningRate,
  'tokens/s': (point) => point.tokensPerSecond,
};

/** What can be drawn of these curves. */
export function metrics(curves: readonly Points[]): string[] {
  const more = new Set(curves.flatMap((points) => points.flatMap((point) => Object.keys(point.metrics))));
  return [...Object.keys(OWN), ...[...more].sort()];
}

export function value(point: Point, metric: string): number | null {
  return OWN[metric]?.(point) ?? point.metrics[metric] ?? null;
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
