import { Button, Checkbox, Group, SegmentedControl, Table, Text, TextInput } from '@mantine/core';
import { useState } from 'react';
import { Link, useLocation } from 'wouter';
import { pathOf, useResources, useTitle } from '../hooks';
import { Failure, Head, Reason, Spoken, Steps, Waiting } from '../parts/Pieces';
import { age, short, tail } from '../pure/format';

/** Rows that a browser draws anew every two seconds without a halt. */
const MOST = 200;
const SHOWN = ['all', 'active', 'done', 'failed'] as const;
type Shown = (typeof SHOWN)[number];

/** All jobs of a namespace, live. */
export default function Jobs({ namespace }: { namespace: string }) {
  useTitle('Jobs');
  const { data, error } = useResources(namespace);
  const [shown, setShown] = useState<Shown>('all');
  const [text, setText] = useState('');
  const [chosen, setChosen] = useState<string[]>([]);
  const [whole, setWhole] = useState(false);
  const [, go] = useLocation();
  const jobs = (data ?? []).filter((one) => one.kind !== 'ModelDeployment');
  const active = jobs.filter((one) => ['running', 'waiting', 'paused'].includes(one.state));
  const rows = jobs
    .filter((one) => shown === 'all' || (shown === 'active' ? active.includes(one) : one.state === shown))
    .filter((one) => [one.name, one.model, one.method, one.reason].join(' ').toLowerCase().includes(text.toLowerCase()));
  const listed = whole ? rows : rows.slice(0, MOST);
  const compared = chosen.filter((name) => jobs.some((one) => one.kind === 'FineTuneJob' && one.name === name));
  const failed = jobs.filter((one) => one.state === 'failed').length;
  if (!data && !error) return <Waiting />;
  return (
    <>
      <Head title="Jobs">
        <Button variant="default" disabled={compared.length < 2} onClick={() => go(`/${namespace}/compare/${compared.join(',')}`)}>
          Compare {compared.length > 1 ? compared.length : ''}
        </Button>
        <Button component={Link} href={`/${namespace}/new`}>
          New job
        </Button>
      </Head>
      <Failure error={error} />
      <Spoken text={`${active.length} jobs active, ${failed} failed`} />
      <Group mb="sm" gap="sm">
        <SegmentedControl
          size="xs"
          aria-label="Which jobs"
          data={SHOWN.map((one) => ({ value: one, label: `${one.charAt(0).toUpperCase()}${one.slice(1)}` }))}
          value={shown}
          onChange={setShown}
        />
        <TextInput size="xs" w={240} placeholder="Name, model, method …" aria-label="Search jobs" value={text} onChange={(event) => setText(event.currentTarget.value)} />
        <Text size="sm" className="quiet">
          {rows.length === jobs.length ? '' : `${rows.length} of `}
          {jobs.length === 1 ? '1 job' : `${jobs.length} jobs`}
        </Text>
      </Group>
      <div className="sheet scroll">
        <Table className="list" verticalSpacing="sm" horizontalSpacing="md" highlightOnHover>
          <Table.Thead>
            <Table.Tr>
              <Table.Th w={36}>
                <span className="mantine-visually-hidden" aria-hidden="true" />
              </Table.Th>
              <Table.Th>Name</Table.Th>
              <Table.Th>Status</Table.Th>
              <Table.Th w={190}>Progress</Table.Th>
              <Table.Th>Loss</Table.Th>
              <Table.Th>Method</Table.Th>
              <Table.Th>Model</Table.Th>
              <Table.Th>Age</Table.Th>
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {listed.map((one) => (
              <Table.Tr key={`${one.kind}/${one.name}`}>
                <Table.Td>
                  {one.kind === 'FineTuneJob' && one.state !== 'unknown' && (
                    <Checkbox
                      size="xs"
                      aria-label={`Compare ${one.name}`}
                      checked={chosen.includes(one.name)}
                      onChange={(event) =>
                        setChosen(event.currentTarget.checked ? [...chosen, one.name] : chosen.filter((name) => name !== one.name))
                      }
                    />
                  )}
                </Table.Td>
                <Table.Td>
                  <Link href={pathOf(one)}>{one.name}</Link>
                  {one.kind !== 'FineTuneJob' && (
                    <Text size="xs" className="quiet">
                      {one.kind === 'MergeJob' ? 'merge' : 'inference'}
                    </Text>
                  )}
                </Table.Td>
                <Table.Td title={one.message}>
                  <Reason of={one} />
                  {one.state === 'unknown' && (
                    <Text size="xs" maw={380} style={{ overflowWrap: 'anywhere' }}>
                      {one.message}
                    </Text>
                  )}
                </Table.Td>
                <Table.Td>
                  <Steps of={one} />
                </Table.Td>
                <Table.Td>{short(one.progress?.loss)}</Table.Td>
                <Table.Td className="nowrap">
                  {one.method ? `${one.method} · ${one.tuner ?? ''}` : '–'}
                  {(one.nodes ?? 1) > 1 ? ` · ${one.nodes ?? 1} nodes` : ''}
                </Table.Td>
                <Table.Td className="clip" title={one.model}>
                  {tail(one.model)}
                </Table.Td>
                <Table.Td className="nowrap">{age(one.created)}</Table.Td>
              </Table.Tr>
            ))}
            {rows.length === 0 && (
              <Table.Tr>
                <Table.Td colSpan={8}>
                  <Text className="quiet" ta="center" py="xl">
                    {jobs.length ? 'No job fits.' : `Namespace ${namespace} has no jobs yet.`}
                  </Text>
                </Table.Td>
              </Table.Tr>
            )}
          </Table.Tbody>
        </Table>
      </div>
      {listed.length < rows.length && (
        <Button variant="default" mt="sm" onClick={() => setWhole(true)}>
          Show all {rows.length}; these are the newest {listed.length}
        </Button>
      )}
    </>
  );
}
