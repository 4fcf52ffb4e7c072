import { Button, Group, Loader } from '@mantine/core';
import { useQuery, useQueryClient } from '@tanstack/react-query';
import { lazy, Suspense, useEffect, useState } from 'react';
import { Redirect, Route, Switch } from 'wouter';
import { get, onEnded, token } from './api';
import { Login } from './pages/Login';
import { Failure } from './parts/Pieces';
import { Shell } from './Shell';
import type { Session } from './types';

const Jobs = lazy(() => import('./pages/Jobs'));
const Job = lazy(() => import('./pages/Job'));
const Compare = lazy(() => import('./pages/Compare'));
const New = lazy(() => import('./pages/New'));
const Deployments = lazy(() => import('./pages/Deployments'));
const Playground = lazy(() => import('./pages/Playground'));

/** Who is there, and the page that is asked for. */
export function App() {
  const queries = useQueryClient();
  const [known, setKnown] = useState(token.get() !== '');
  const [why, setWhy] = useState('');
  const session = useQuery({
    queryKey: ['session', known],
    queryFn: ({ signal }) => get<Session>('session', signal),
    enabled: known,
    staleTime: Infinity,
  });
  useEffect(
    () =>
      onEnded(() => {
        if (token.get()) setWhy('The cluster does not know this token, or no longer.');
        token.clear();
        // Who comes next may be somebody else.
        queries.clear();
        setKnown(false);
      }),
    [queries],
  );
  const leave = () => {
    token.clear();
    queries.clear();
    setWhy('');
    setKnown(false);
  };
  if (!known) {
    return (
      <Login
        why={why}
        enter={(text) => {
          token.set(text);
          setKnown(true);
        }}
      />
    );
  }
  if (session.error) {
    return (
      <main className="page" style={{ maxWidth: 460, paddingTop: '12vh', paddingInline: 16 }}>
        <Failure error={session.error} />
        <Group mt="md">
          <Button loading={session.isFetching} onClick={() => void session.refetch()}>
            Try again
          </Button>
          <Button variant="default" onClick={leave}>
            Log out
          </Button>
        </Group>
      </main>
    );
  }
  if (!session.data) return <Loader m="xl" role="status" aria-label="Connecting" />;
  const home = `/${session.data.namespace}/jobs`;
  return (
    <Switch>
      <Route path="/:namespace/:page/*?">
        {({ namespace }) => (
          <Shell session={session.data} namespace={namespace} leave={leave}>
            <Suspense fallback={<Loader m="xl" role="status" aria-label="Loading" />}>
              <Switch>
                <Route path="/:namespace/jobs">
                  <Jobs namespace={namespace} />
                </Route>
                <Route path="/:namespace/compare/:names">
                  {({ names }) => <Compare namespace={namespace} names={names.split(',')} />}
                </Route>
                <Route path="/:namespace/new/:start?">
                  {({ start }) => <New namespace={namespace} start={start ?? 'SFT'} />}
                </Route>
                <Route path="/:namespace/deployments">
                  <Deployments namespace={namespace} />
                </Route>
                <Route path="/:namespace/playground/:deployment?">
                  {({ deployment }) => <Playground namespace={namespace} deployment={deployment ?? ''} />}
                </Route>
                <Route path="/:namespace/:kind/:name">
                  {({ kind, name }) => <Job namespace={namespace} plural={kind} name={name} />}
                </Route>
                <Redirect to={home} replace />
              </Switch>
            </Suspense>
          </Shell>
        )}
      </Route>
      <Redirect to={home} replace />
    </Switch>
  );
}
