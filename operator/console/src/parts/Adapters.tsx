import { Badge, Button, Group, NativeSelect, Table, Text, TextInput } from '@mantine/core';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { useState } from 'react';
import { get, send, space } from '../api';
import { useResources } from '../hooks';
import { tail } from '../pure/format';
import type { AdapterState, Detail, Summary } from '../types';
import { Confirm, Failure } from './Pieces';

const COLOURS = { Ready: 'teal', Failed: 'red', Loading: 'indigo', Waiting: 'yellow' } as const;

interface Wanted {
  name: string;
  [key: string]: unknown;
}

/** The adapters of a deployment, where each is, and a way to add one or take one away. No pod restarts. */
export function Adapters({ namespace, of }: { namespace: string; of: Summary }) {
  const queries = useQueryClient();
  const { data } = useResources(namespace);
  const jobs = (data ?? []).filter((one) => one.kind === 'FineTuneJob');
  const [name, setName] = useState('');
  const [job, setJob] = useState('');
  const [leaving, setLeaving] = useState<string | null>(null);
  const path = `${space(namespace)}/modeldeployments/${of.name}`;
  const change = useMutation({
    mutationFn: async (edit: (adapters: Wanted[]) => Wanted[]) => {
      const { resource } = await get<Detail>(path);
      const { apiVersion, kind, metadata, spec } = resource;
      const adapters = edit((spec['adapters'] ?? []) as Wanted[]);
      const head = { name: metadata.name, resourceVersion: metadata.resourceVersion };
      await send('PUT', path, { apiVersion, kind, metadata: head, spec: { ...spec, adapters } });
    },
    onSuccess: () => setName(''),
    onSettled: () => queries.invalidateQueries(),
  });
  const adapters = Array.isArray(of.adapters) ? of.adapters : [];
  return (
    <>
      <Failure error={change.error} />
      {adapters.length > 0 && (
        <div className="scroll">
          <Table className="facts" verticalSpacing={6}>
            <Table.Thead>
              <Table.Tr>
                <Table.Th>Adapter</Table.Th>
                <Table.Th>State</Table.Th>
                <Table.Th>Pods</Table.Th>
                <Table.Th>Version</Table.Th>
                <Table.Th>Why</Table.Th>
                <Table.Td />
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {adapters.map((one) => (
                <Line key={one.name} of={one} remove={() => setLeaving(one.name)} />
              ))}
            </Table.Tbody>
          </Table>
        </div>
      )}
      {/* Beside the table: a row may go while it asks. */}
      <Confirm
        open={leaving !== null}
        close={() => setLeaving(null)}
        title={`Remove adapter ${leaving ?? ''} of ${of.name}?`}
        verb="Remove"
        act={() => change.mutate((all) => all.filter((other) => other.name !== leaving))}
      >
        Requests for it are refused from then on. What it was made from stays in the store.
      </Confirm>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          const from = job || jobs[0]?.name;
          if (from) change.mutate((all) => [...all, { name: name || from, fineTuneJobRef: { name: from } }]);
        }}
      >
        <Group gap="xs" mt="sm" align="end">
          <NativeSelect size="xs" label="Add the adapter of" data={jobs.map((one) => one.name)} value={job} onChange={(event) => setJob(event.currentTarget.value)} disabled={!jobs.length} />
          <TextInput size="xs" label="as" placeholder="the job’s name" value={name} onChange={(event) => setName(event.currentTarget.value)} />
          <Button size="xs" type="submit" variant="light" loading={change.isPending} disabled={!jobs.length}>
            Add
          </Button>
        </Group>
      </form>
    </>
  );
}

function Line({ of, remove }: { of: AdapterState; remove: () => void }) {
  const state = of.state ?? 'Waiting';
  const pods = of.pods ?? [];
  return (
    <Table.Tr>
      <Table.Td fw={600}>{of.name}</Table.Td>
      <Table.Td>
        <Badge variant="light" autoContrast tt="none" color={COLOURS[state]}>
          {state}
        </Badge>
      </Table.Td>
      <Table.Td>
        {of.readyPods ?? 0} of {of.desiredPods ?? 0}
        {pods.map((pod) => (
          <Text key={pod.pod} size="xs" className="quiet">
            {pod.pod}: {pod.state} {pod.reason ?? ''}
          </Text>
        ))}
      </Table.Td>
      <Table.Td className="mono" title={of.digest}>
        {of.digest ? tail(of.digest).replace('sha256:', '').slice(0, 12) : '–'}
      </Table.Td>
      <Table.Td>{of.reason ? `${of.reason}: ${of.message ?? ''}` : ''}</Table.Td>
      <Table.Td ta="right">
        <Button size="compact-xs" variant="subtle" color="red" aria-label={`Remove adapter ${of.name}`} onClick={remove}>
          Remove
        </Button>
      </Table.Td>
    </Table.Tr>
  );
}
