import { Checkbox, Stack, Table } from '@mantine/core';
import { useQueries } from '@tanstack/react-query';
import { useCallback, useEffect, useMemo, useState } from 'react';
import { Link } from 'wouter';
import { get, space } from '../api';
import { useTitle } from '../hooks';
import { Curve } from '../parts/Curve';
import { Failure, Head, Reason, Sheet, Waiting } from '../parts/Pieces';
import { useCurve } from '../parts/useCurve';
import { least, type Points } from '../pure/curve';
import { sideBySide } from '../pure/differences';
import { short } from '../pure/format';
import type { Detail, Summary } from '../types';

/** Jobs side by side: their curves in one picture, and what is different between them. */
export default function Compare({ namespace, names }: { namespace: string; names: string[] }) {
  useTitle('Compare');
  const [all, setAll] = useState(false);
  const [points, setPoints] = useState<Record<string, Points>>({});
  const found = useQueries({
    queries: names.map((name) => ({
      queryKey: ['detail', namespace, 'finetunejobs', name],
      queryFn: ({ signal }: { signal: AbortSignal }) => get<Detail>(`${space(namespace)}/finetunejobs/${name}`, signal),
      refetchInterval: 3000,
    })),
  });
  const take = useCallback((name: string, some: Points) => setPoints((old) => ({ ...old, [name]: some })), []);
  const curves = useMemo(() => names.map((name) => ({ name, points: points[name] ?? [] })), [names, points]);
  const error = found.find((one) => one.error)?.error;
  const details = found.flatMap((one) => (one.data ? [one.data] : []));
  if (details.length < names.length) return error ? <Failure error={error} /> : <Waiting />;
  const losses = curves.map((one) => one.points.map((point) => point.loss));
  const measured: [string, string[]][] = [
    ['steps', details.map(({ summary }) => summary.progress?.text ?? '–')],
    ['first loss', losses.map((one) => short(one[0]))],
    ['last loss', losses.map((one) => short(one.at(-1)))],
    ['least loss', losses.map((one) => short(least(one)))],
    ['tokens/s', details.map(({ summary }) => short(summary.progress?.tokensPerSecond))],
    ['restarts', details.map(({ resource }) => String(resource.status?.restarts ?? 0))],
  ];
  const rows = sideBySide(details.map(({ resource }) => resource.spec)).filter((row) => all || !row.same);
  return (
    <>
      <Head title="Compare" />
      <Failure error={error} />
      {details.map(({ summary, resource }) => (
        <Follow key={resource.metadata.uid ?? summary.name} namespace={namespace} summary={summary} take={take} />
      ))}
      <Stack>
        <Sheet title="Curves">
          <Curve curves={curves} />
        </Sheet>
        <Sheet
          title="Results and settings"
          aside={<Checkbox size="xs" label="Also what is the same" checked={all} onChange={(event) => setAll(event.currentTarget.checked)} />}
        >
          <div className="scroll">
            <Table className="facts" verticalSpacing={6}>
              <Table.Thead>
                <Table.Tr>
                  <Table.Td />
                  {details.map(({ summary }) => (
                    <Table.Th key={summary.name} scope="col">
                      <Link href={`/${namespace}/finetunejobs/${summary.name}`}>{summary.name}</Link> <Reason of={summary} />
                    </Table.Th>
                  ))}
                </Table.Tr>
              </Table.Thead>
              <Table.Tbody>
                {measured.map(([label, values]) => (
                  <Table.Tr key={label}>
                    <Table.Th scope="row">{label}</Table.Th>
                    {values.map((one, at) => (
                      <Table.Td key={at}>{one}</Table.Td>
                    ))}
                  </Table.Tr>
                ))}
                {rows.map((row) => (
                  <Table.Tr key={row.path} className={row.same ? '' : 'differs'}>
                    <Table.Th scope="row" className="mono">
                      {row.path}
                    </Table.Th>
                    {row.values.map((one, at) => (
                      <Table.Td key={at}>{one || '–'}</Table.Td>
                    ))}
                  </Table.Tr>
                ))}
              </Table.Tbody>
            </Table>
          </div>
        </Sheet>
      </Stack>
    </>
  );
}

/** Follows one job's curve for the page above it. */
function Follow({ namespace, summary, take }: { namespace: string; summary: Summary; take: (name: string, points: Points) => void }) {
  const { state } = useCurve(namespace, summary);
  const { name } = summary;
  useEffect(() => take(name, state), [name, state, take]);
  return null;
}
