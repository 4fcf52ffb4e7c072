import { space } from '../api';
import { extended, type Point, type Points } from '../pure/curve';
import { useStream } from '../streams';
import { PLURALS, type Summary } from '../types';

const NONE: Points = [];

/** What a job logs, as it comes. */
export function useCurve(namespace: string, { name, state }: Pick<Summary, 'name' | 'state'>) {
  // One that is over is read once; one that goes on after it was retried is another stream.
  const follow = state === 'done' || state === 'failed' ? 'false' : 'true';
  const path = `${space(namespace)}/${PLURALS.FineTuneJob}/${name}/metrics?follow=${follow}`;
  return useStream(path, NONE, (points, more: Point[]) => extended(points, more));
}
