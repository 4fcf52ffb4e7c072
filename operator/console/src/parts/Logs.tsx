import { Checkbox, Group, NativeSelect, Text, TextInput, useComputedColorScheme } from '@mantine/core';
import { useEffect, useMemo, useRef, useState } from 'react';
import { space } from '../api';
import { plain } from '../pure/lines';
import { useStream } from '../streams';
import type { LogLine, Pod } from '../types';
import { COLOURS } from './colours';
import { Failure } from './Pieces';

const MOST = 5000;
const NONE: LogLine[] = [];

/** The logs of all ranks of an attempt as they come. */
export function Logs({ namespace, plural, name, pods, attempts }: { namespace: string; plural: string; name: string; pods: Pod[] | null; attempts: number[] }) {
  const [attempt, setAttempt] = useState('');
  const [rank, setRank] = useState('');
  const [filter, setFilter] = useState('');
  const [stick, setStick] = useState(true);
  const query = new URLSearchParams({ follow: attempt ? 'false' : 'true' });
  if (attempt) query.set('attempt', attempt);
  if (rank) query.set('rank', rank);
  const { state, error, open } = useStream(
    `${space(namespace)}/${plural}/${name}/logs?${query.toString()}`,
    NONE,
    (old, more: LogLine[]) => [...old, ...more.map((line) => ({ ...line, text: plain(line.text) }))].slice(-MOST),
  );
  const scheme = useComputedColorScheme('light');
  const box = useRef<HTMLPreElement>(null);
  const shown = useMemo(
    () => (filter ? state.filter((line) => line.text.toLowerCase().includes(filter.toLowerCase())) : state),
    [state, filter],
  );
  useEffect(() => {
    if (stick && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [shown, stick]);
  const ranks = [...new Set((pods ?? []).map((pod) => pod.rank))].sort((a, b) => a - b);
  const serving = plural === 'modeldeployments';
  return (
    <div>
      <Group mb="xs" gap="sm">
        {!serving && (
          <>
            <NativeSelect
              size="xs"
              aria-label="Attempt"
              value={attempt}
              onChange={(event) => setAttempt(event.currentTarget.value)}
              data={[{ value: '', label: 'Newest attempt' }, ...attempts.map((one) => ({ value: String(one), label: `Attempt ${one}` }))]}
            />
            <NativeSelect
              size="xs"
              aria-label="Rank"
              value={rank}
              onChange={(event) => setRank(event.currentTarget.value)}
              data={[{ value: '', label: 'All ranks' }, ...ranks.map((one) => ({ value: String(one), label: `Rank ${one}` }))]}
            />
          </>
        )}
        <TextInput size="xs" aria-label="Only lines with" placeholder="Only lines with …" value={filter} onChange={(event) => setFilter(event.currentTarget.value)} />
        <Checkbox size="xs" label="Stay at the end" checked={stick} onChange={(event) => setStick(event.currentTarget.checked)} />
        <Text size="xs" className="quiet">
          {shown.length} {shown.length === 1 ? 'line' : 'lines'}{open && !attempt ? ', live' : ''}
        </Text>
      </Group>
      {error && <Failure error={new Error(error)} />}
      {/* A region that scrolls can be scrolled by the keyboard only where it can have the focus. */}
      {/* eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex */}
      <pre ref={box} className="text log" tabIndex={0} aria-label="Log">
        {shown.length === 0 && <span className="quiet">No lines yet.</span>}
        {shown.map((line, at) => (
          <span key={at}>
            <span className="who" style={{ color: COLOURS[scheme][line.rank % 6] }}>
              {serving ? line.container : `rank ${line.rank}`}
            </span>
            {line.text}
            {'\n'}
          </span>
        ))}
      </pre>
    </div>
  );
}
