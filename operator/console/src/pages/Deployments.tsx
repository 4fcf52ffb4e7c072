import { Button, Group, Stack, Text, Title } from '@mantine/core';
import { Link } from 'wouter';
import { pathOf, useResources, useTitle } from '../hooks';
import { Adapters } from '../parts/Adapters';
import { Failure, Head, Reason, Spoken, Waiting } from '../parts/Pieces';
import { age } from '../pure/format';

/** Models that are served, with their adapters. */
export default function Deployments({ namespace }: { namespace: string }) {
  useTitle('Deployments');
  const { data, error } = useResources(namespace);
  if (!data && !error) return <Waiting />;
  const found = (data ?? []).filter((one) => one.kind === 'ModelDeployment');
  return (
    <>
      <Head title="Deployments">
        <Button component={Link} href={`/${namespace}/new/ModelDeployment`}>
          New deployment
        </Button>
      </Head>
      <Failure error={error} />
      <Spoken text={found.map((one) => `${one.name} ${one.reason}`).join(', ')} />
      <Stack>
        {found.map((one) => (
          <section key={one.name} className="sheet" style={{ padding: 16 }} aria-label={one.name}>
            <Group justify="space-between">
              <Group gap="sm">
                <Title order={2} size="h4">
                  <Link href={pathOf(one)}>{one.name}</Link>
                </Title>
                <Reason of={one} />
                <Text size="sm" className="quiet">
                  {one.pods ? `${one.pods.ready} of ${one.pods.wanted} pods · ` : ''}
                  {age(one.created)}
                </Text>
              </Group>
              {one.state !== 'unknown' && (
                <Button size="xs" variant="light" component={Link} href={`/${namespace}/playground/${one.name}`}>
                  Playground
                </Button>
              )}
            </Group>
            <Text size="sm" className="quiet" mt={4} mb="sm" style={{ overflowWrap: 'anywhere' }}>
              {one.state === 'unknown' ? '' : `${one.model} as ${one.modelName ?? ''}${one.state === 'done' ? '' : ' · '}`}
              {one.state === 'done' ? '' : one.message}
            </Text>
            {one.state !== 'unknown' && <Adapters namespace={namespace} of={one} />}
          </section>
        ))}
        {found.length === 0 && (
          <div className="sheet">
            <Text className="quiet" ta="center" py="xl">
              Namespace {namespace} serves no models yet.
            </Text>
          </div>
        )}
      </Stack>
    </>
  );
}
