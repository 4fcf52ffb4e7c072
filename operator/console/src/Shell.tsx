import { ActionIcon, AppShell, Burger, Button, Group, NativeSelect, NavLink, Text, TextInput, useMantineColorScheme, useComputedColorScheme } from '@mantine/core';
import { useDisclosure } from '@mantine/hooks';
import { useQuery } from '@tanstack/react-query';
import { type ReactNode, useEffect, useRef, useState } from 'react';
import { Link, useLocation } from 'wouter';
import { get } from './api';
import { Boundary } from './parts/Boundary';
import { Chat, Flask, Moon, Plus, Rack, Sun } from './parts/Icons';
import type { Session } from './types';

const PAGES = [
  { page: 'jobs', label: 'Jobs', icon: <Flask /> },
  { page: 'new', label: 'New', icon: <Plus /> },
  { page: 'deployments', label: 'Deployments', icon: <Rack /> },
  { page: 'playground', label: 'Playground', icon: <Chat /> },
];

interface Props {
  session: Session;
  namespace: string;
  leave: () => void;
  children: ReactNode;
}

/** Header, navigation, and the page between them. */
export function Shell({ session, namespace, leave, children }: Props) {
  const [open, { toggle, close }] = useDisclosure();
  const [where] = useLocation();
  const main = useRef<HTMLDivElement>(null);
  const before = useRef(where);
  const [, page = 'jobs'] = where.slice(1).split('/');
  useEffect(() => {
    if (before.current === where) return;
    before.current = where;
    // A page that was gone to begins at its top, for the eye and for the keyboard.
    close();
    main.current?.focus();
    window.scrollTo(0, 0);
  }, [where, close]);
  return (
    <AppShell
      header={{ height: 56 }}
      navbar={{ width: 208, breakpoint: 'sm', collapsed: { mobile: !open } }}
      padding="lg"
      transitionDuration={0}
    >
      <a
        className="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          main.current?.focus();
        }}
      >
        Skip to the content
      </a>
      <AppShell.Header className="sheet" style={{ borderWidth: '0 0 1px', borderRadius: 0 }}>
        <Group h="100%" px="md" justify="space-between" wrap="nowrap">
          <Group gap="sm" wrap="nowrap">
            <Burger hiddenFrom="sm" size="sm" opened={open} onClick={toggle} aria-label="Navigation" aria-expanded={open} />
            <Link className="wordmark" href={`/${namespace}/jobs`}>
              <img src="./icon.svg" alt="" width={24} height={24} />
              <Text span visibleFrom="xs" fw={700}>
                tunesmith
              </Text>
            </Link>
          </Group>
          <Group gap="sm" wrap="nowrap">
            <Namespaces key={namespace} namespace={namespace} page={page} />
            <Scheme />
            <Text size="sm" className="quiet clip" visibleFrom="md" title={session.user}>
              {session.user}
            </Text>
            {!session.local && (
              <Button variant="subtle" size="xs" onClick={leave}>
                Log out
              </Button>
            )}
          </Group>
        </Group>
      </AppShell.Header>
      <AppShell.Navbar p="sm" className="sheet" style={{ borderWidth: '0 1px 0 0', borderRadius: 0 }} aria-label="Pages">
        {PAGES.map((one) => (
          <NavLink
            key={one.page}
            renderRoot={(props: Record<string, unknown>) => <Link {...props} href={`/${namespace}/${one.page}`} />}
            label={one.label}
            leftSection={one.icon}
            active={page === one.page}
            {...(page === one.page ? { 'aria-current': 'page' as const } : {})}
            style={{ borderRadius: 8 }}
          />
        ))}
      </AppShell.Navbar>
      <AppShell.Main>
        <div ref={main} id="main" tabIndex={-1} className="page">
          {/* Of another page, namespace or resource nothing stays: no choice, no answer, no error. */}
          <Boundary key={where}>{children}</Boundary>
        </div>
      </AppShell.Main>
    </AppShell>
  );
}

/** Which namespace; typed in where the user may not list them. */
function Namespaces({ namespace, page }: { namespace: string; page: string }) {
  const [, go] = useLocation();
  const { data } = useQuery({
    queryKey: ['namespaces'],
    queryFn: ({ signal }) => get<{ names: string[]; all: boolean }>('namespaces', signal),
    staleTime: 60_000,
  });
  const [typed, setTyped] = useState(namespace);
  const move = (to: string) => go(`/${to}/${page in { new: 1, deployments: 1, playground: 1 } ? page : 'jobs'}`);
  if (!data?.all) {
    return (
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (typed) move(typed);
        }}
      >
        <TextInput
          size="xs"
          w={150}
          aria-label="Namespace"
          value={typed}
          onChange={(event) => setTyped(event.currentTarget.value.trim())}
        />
      </form>
    );
  }
  const names = data.names.includes(namespace) ? data.names : [namespace, ...data.names];
  return (
    <NativeSelect
      size="xs"
      w={170}
      aria-label="Namespace"
      data={names}
      value={namespace}
      onChange={(event) => move(event.currentTarget.value)}
    />
  );
}

function Scheme() {
  const { setColorScheme } = useMantineColorScheme();
  const now = useComputedColorScheme('light');
  const next = now === 'dark' ? 'light' : 'dark';
  return (
    <ActionIcon variant="default" size="md" aria-label={`Use the ${next} colours`} onClick={() => setColorScheme(next)}>
      {now === 'dark' ? <Sun /> : <Moon />}
    </ActionIcon>
  );
}
