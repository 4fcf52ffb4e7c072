import { Alert, Button, Group, SimpleGrid, Stack, Table, Tabs, Text } from '@mantine/core';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { useState } from 'react';
import { Link, useLocation } from 'wouter';
import { send, space } from '../api';
import { useDetail, useTitle } from '../hooks';
import { Adapters } from '../parts/Adapters';
import { Curve } from '../parts/Curve';
import { Logs } from '../parts/Logs';
import { MemoryBar } from '../parts/Memory';
import { COLOURS, Confirm, Fact, Failure, Head, marked, Reason, Sheet, Spoken, Steps, Waiting } from '../parts/Pieces';
import { useCurve } from '../parts/useCurve';
import { yaml } from '../parts/yaml';
import { age, bytes, short } from '../pure/format';
import { deployable } from '../pure/make';
import type { Detail } from '../types';

interface Props {
  namespace: string;
  plural: string;
  name: string;
}

/** One resource: what it does and why, its curve, attempts, pods, logs and events. */
export default function Job({ namespace, plural, name }: Props) {
  useTitle(name);
  const { data, error } = useDetail(namespace, plural, name);
  if (!data) return error ? <Failure error={error} /> : <Waiting />;
  const { summary } = data;
  // A job that runs once more is another one of its name, with other logs.
  const { uid } = data.resource.metadata;
  const known = summary.state !== 'unknown';
  return (
    <>
      <Head
        title={
          <Group gap="sm">
            {name} <Reason of={summary} />
          </Group>
        }
      >
        <Actions detail={data} namespace={namespace} plural={plural} />
      </Head>
      <Failure error={error} />
      <Stack>
        {data.unknown.length > 0 && (
          <Alert color={COLOURS.unknown} title="It has fields that this version of tunesmith does not know, and goes without">
            {data.unknown.map((one) => (
              <div key={one}>{one}</div>
            ))}
          </Alert>
        )}
        <Why detail={data} />
        <SimpleGrid cols={{ base: 1, md: known && summary.kind === 'FineTuneJob' ? 2 : 1 }}>
          {known && summary.kind === 'FineTuneJob' && <Training key={uid} namespace={namespace} detail={data} />}
          <Facts detail={data} />
        </SimpleGrid>
        {known && summary.kind === 'ModelDeployment' && (
          <Sheet title="Adapters">
            <Adapters namespace={namespace} of={summary} />
          </Sheet>
        )}
        <Parts key={uid} detail={data} namespace={namespace} plural={plural} name={name} />
      </Stack>
    </>
  );
}

function Why({ detail: { summary, explained } }: { detail: Detail }) {
  // The curve says more than that its pods run.
  if (summary.reason === 'Running' || (summary.state === 'done' && summary.kind !== 'ModelDeployment')) return null;
  const todo = explained?.todo && explained.todo !== 'nothing' ? explained.todo : '';
  return (
    <Alert color={COLOURS[summary.state]} title={explained ? `${summary.reason}: ${explained.meaning}` : summary.reason}>
      <Text size="sm" style={{ whiteSpace: 'pre-wrap', overflowWrap: 'anywhere' }}>
        {summary.message}
      </Text>
      {todo && summary.state !== 'running' && summary.state !== 'done' && (
        <Text size="sm" mt={6}>
          <b>What to do:</b> {marked(todo)}
          {summary.kind === 'FineTuneJob' && summary.state === 'failed' && '. “New like this” begins with all that this job has; “Retry” runs it as it is.'}
        </Text>
      )}
    </Alert>
  );
}

function Training({ namespace, detail: { summary } }: { namespace: string; detail: Detail }) {
  const curve = useCurve(namespace, summary);
  const progress = summary.progress;
  const loss = progress?.loss === undefined ? '' : `, loss ${short(progress.loss)}`;
  const curves = [{ name: summary.name, points: curve.state }];
  return (
    <Sheet title="Training" aside={progress && <div style={{ width: 220 }}><Steps of={summary} /></div>}>
      <Spoken text={progress ? `${summary.reason}, step ${progress.step} of ${progress.totalSteps}${loss}` : summary.reason} />
      {curve.state.length ? <Curve curves={curves} /> : <Text className="quiet">{curve.error || 'Nothing is logged yet.'}</Text>}
    </Sheet>
  );
}

function Facts({ detail: { resource, summary } }: { detail: Detail }) {
  const { status } = resource;
  const accounting = status?.accounting as { askedHours?: number; device?: string; cost?: number } | undefined;
  return (
    <Sheet title="Facts">
      <Stack>
        <SimpleGrid cols={{ base: 2, sm: 3 }} spacing="sm">
          {summary.model && <Fact label="Model">{summary.model}</Fact>}
          {summary.method && <Fact label="Method">{`${summary.method}, ${summary.tuner ?? ''}`}</Fact>}
          {summary.nodes && <Fact label="Nodes">{summary.nodes}</Fact>}
          {summary.progress?.rowsPerSecond && <Fact label="Rows/s">{short(summary.progress.rowsPerSecond)}</Fact>}
          {Object.entries(summary.metrics ?? {}).map(([name, value]) => (
            <Fact key={name} label={name}>
              {short(value)}
            </Fact>
          ))}
          {summary.kind === 'FineTuneJob' && summary.progress && (
            <>
              <Fact label="Loss">{short(summary.progress.loss)}</Fact>
              <Fact label="Tokens/s">{short(summary.progress.tokensPerSecond)}</Fact>
              {summary.progress.peakMemoryBytes ? <Fact label="Peak memory">{bytes(summary.progress.peakMemoryBytes)}</Fact> : null}
            </>
          )}
          {summary.pods && <Fact label="Pods">{`${summary.pods.ready} of ${summary.pods.wanted} ready`}</Fact>}
          {summary.modelName && <Fact label="Name for requests">{summary.modelName}</Fact>}
          {status?.url && <Fact label="Address in the cluster">{status.url}</Fact>}
          <Fact label="Age">{age(summary.created)}</Fact>
          {accounting?.askedHours !== undefined && (
            <Fact label={`${accounting.device ?? 'device'} hours`}>
              {short(accounting.askedHours)}
              {accounting.cost !== undefined ? `, cost ${short(accounting.cost)}` : ''}
            </Fact>
          )}
        </SimpleGrid>
        {status?.artifact?.uri && (
          <Fact label={`Made: ${status.artifact.kind ?? 'artifact'}`}>
            <span className="mono">{status.artifact.uri}</span>
          </Fact>
        )}
        {resource.kind === 'FineTuneJob' && status?.memory && <MemoryBar memory={status.memory} />}
      </Stack>
    </Sheet>
  );
}

function Actions({ detail: { summary }, namespace, plural }: { detail: Detail; namespace: string; plural: string }) {
  const queries = useQueryClient();
  const [, go] = useLocation();
  const [asked, setAsked] = useState<'delete' | 'retry' | null>(null);
  const path = `${space(namespace)}/${plural}/${summary.name}`;
  const act = useMutation({
    mutationFn: (verb: string) => (verb === 'delete' ? send('DELETE', path) : send('POST', `${path}/${verb}`)),
    onSettled: () => queries.invalidateQueries(),
    onSuccess: (_, verb) => {
      if (verb === 'delete') go(`/${namespace}/${summary.kind === 'ModelDeployment' ? 'deployments' : 'jobs'}`);
    },
  });
  const over = summary.state === 'done' || summary.state === 'failed';
  const known = summary.state !== 'unknown';
  const job = summary.kind !== 'ModelDeployment';
  const ask = (verb: 'delete' | 'retry') => setAsked(verb);
  return (
    <>
      {act.error && <Failure error={act.error} />}
      {job && known && !over && (
        <Button variant="default" loading={act.isPending} onClick={() => act.mutate(summary.suspended ? 'resume' : 'suspend')}>
          {summary.suspended ? 'Resume' : 'Suspend'}
        </Button>
      )}
      {job && over && (
        <Button variant="default" loading={act.isPending} onClick={() => ask('retry')}>
          Retry
        </Button>
      )}
      {deployable(summary) && (
        <Button component={Link} href={`/${namespace}/new/deploy:${plural}:${summary.name}`}>
          Deploy
        </Button>
      )}
      {summary.kind === 'FineTuneJob' && (
        <Button variant="default" component={Link} href={`/${namespace}/new/like:${plural}:${summary.name}`}>
          New like this
        </Button>
      )}
      {!job && (
        <>
          <Button variant="default" component={Link} href={`/${namespace}/new/edit:${plural}:${summary.name}`}>
            Edit
          </Button>
          {known && (
            <Button component={Link} href={`/${namespace}/playground/${summary.name}`}>
              Playground
            </Button>
          )}
        </>
      )}
      <Button variant="light" color="red" onClick={() => ask('delete')}>
        Delete
      </Button>
      <Confirm
        open={asked !== null}
        close={() => setAsked(null)}
        title={asked === 'retry' ? `Run ${summary.name} once more?` : `Delete ${summary.name}?`}
        verb={asked === 'retry' ? 'Retry' : 'Delete'}
        act={() => asked && act.mutate(asked)}
      >
        {asked === 'retry'
          ? 'It begins anew, and the record of this run goes. “New like this” keeps both.'
          : 'Its pods end. What it has made stays in the store.'}
      </Confirm>
    </>
  );
}

function Parts({ detail, namespace, plural, name }: { detail: Detail } & Props) {
  const { resource, pods, events } = detail;
  const attempts = resource.status?.attempts ?? [];
  const job = resource.kind !== 'ModelDeployment';
  return (
    <section className="sheet" style={{ padding: 16 }} aria-label="Details">
      <Tabs defaultValue={job ? 'logs' : 'pods'} keepMounted={false}>
        <Tabs.List mb="md">
          <Tabs.Tab value="logs">Logs</Tabs.Tab>
          {job && <Tabs.Tab value="attempts">Attempts ({attempts.length})</Tabs.Tab>}
          <Tabs.Tab value="pods">Pods ({pods?.length ?? 0})</Tabs.Tab>
          <Tabs.Tab value="events">Events ({events?.length ?? 0})</Tabs.Tab>
          <Tabs.Tab value="conditions">Conditions</Tabs.Tab>
          <Tabs.Tab value="yaml">YAML</Tabs.Tab>
        </Tabs.List>
        <Tabs.Panel value="logs">
          <Logs namespace={namespace} plural={plural} name={name} pods={pods} attempts={attempts.map((one) => one.number)} />
        </Tabs.Panel>
        <Tabs.Panel value="attempts">
          <Rows
            head={['Attempt', 'Ended', 'From step', 'To step', 'Nodes', 'Took', 'Message']}
            rows={[...attempts].reverse().map((one) => [
              one.number,
              one.reason ?? 'under way',
              one.resumedStep ?? 0,
              one.lastStep ?? '–',
              one.nodes ?? '–',
              one.startTime ? age(one.startTime, one.endTime ? Date.parse(one.endTime) : undefined) : '–',
              one.message ?? '',
            ])}
            none="No attempt was made yet."
          />
        </Tabs.Panel>
        <Tabs.Panel value="pods">
          {pods === null ? (
            <Text className="quiet">You may not read pods here.</Text>
          ) : (
            <Rows
              head={['Pod', ...(job ? ['Attempt', 'Rank'] : []), 'Phase', 'Ready', 'Restarts', 'Node', 'Held up by']}
              rows={pods.map((one) => [
                one.name,
                ...(job ? [one.attempt, one.rank] : []),
                one.phase,
                one.ready ? 'yes' : 'no',
                one.restarts,
                one.node ?? '–',
                one.problem ?? '',
              ])}
              none="It has no pods now."
            />
          )}
        </Tabs.Panel>
        <Tabs.Panel value="events">
          {events === null ? (
            <Text className="quiet">You may not read events here.</Text>
          ) : (
            <Rows
              head={['Age', 'Type', 'Reason', 'Message']}
              rows={events.map((one) => [age(one.time), one.type, one.count > 1 ? `${one.reason} ×${one.count}` : one.reason, one.message])}
              none="Nothing was told, or it is too long ago."
            />
          )}
        </Tabs.Panel>
        <Tabs.Panel value="conditions">
          <Rows
            head={['Condition', 'Status', 'Reason', 'For', 'Message']}
            rows={(resource.status?.conditions ?? []).map((one) => [one.type, one.status, one.reason, age(one.lastTransitionTime), one.message])}
            none="The operator has not looked at it yet."
          />
        </Tabs.Panel>
        <Tabs.Panel value="yaml">
          {/* eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex */}
          <pre className="text" tabIndex={0} aria-label="YAML">
            {yaml(resource)}
          </pre>
        </Tabs.Panel>
      </Tabs>
    </section>
  );
}

function Rows({ head, rows, none }: { head: string[]; rows: (string | number)[][]; none: string }) {
  if (!rows.length) return <Text className="quiet">{none}</Text>;
  return (
    <div className="scroll">
      <Table className="facts" verticalSpacing={6}>
        <Table.Thead>
          <Table.Tr>
            {head.map((one) => (
              <Table.Th key={one}>{one}</Table.Th>
            ))}
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {rows.map((row, at) => (
            <Table.Tr key={at}>
              {row.map((cell, column) => (
                <Table.Td key={column}>{cell}</Table.Td>
              ))}
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </div>
  );
}
