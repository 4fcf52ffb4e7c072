import { Alert, Badge, Button, Group, Loader, Progress, Stack, Text, Title } from '@mantine/core';
import { type ReactNode, useEffect, useRef, useState } from 'react';
import { Refusal } from '../api';
import type { State, Summary } from '../types';

export const COLOURS: Record<State, string> = { done: 'teal', failed: 'red', paused: 'gray', running: 'indigo', waiting: 'yellow', unknown: 'grape' };

/** The word that `kubectl get` shows; its colour says no more than the word does. */
export function Reason({ of }: { of: Pick<Summary, 'reason' | 'state'> }) {
  return (
    <Badge color={COLOURS[of.state]} variant="light" autoContrast tt="none" fw={600} className={`state ${of.state}`}>
      {of.reason}
    </Badge>
  );
}

/** How far a training is. */
export function Steps({ of, width }: { of: Summary; width?: number }) {
  const { progress } = of;
  if (!progress) return <span className="quiet">–</span>;
  return (
    <Stack gap={3} {...(width ? { w: width } : {})}>
      <Progress
        value={progress.percent}
        size="sm"
        color={COLOURS[of.state]}
        aria-label={`Progress of ${of.name}`}
        transitionDuration={200}
      />
      <Text size="xs" className="quiet nowrap">
        {progress.text ?? `${progress.step}/${progress.totalSteps}`}
        {progress.eta && of.state === 'running' ? ` · ${progress.eta} left` : ''}
      </Text>
    </Stack>
  );
}

/** A text, with what stands in `backticks` as code. */
export function marked(text: string | undefined): ReactNode {
  return text?.split('`').map((part, at) => (at % 2 ? <code key={at}>{part}</code> : part));
}

/** What went wrong, and what to do. */
export function Failure({ error }: { error: unknown }) {
  if (!error) return null;
  const hint = error instanceof Refusal ? error.hint : '';
  return (
    <Alert color="red" role="alert" title={error instanceof Error ? error.message : 'Something went wrong'}>
      {marked(hint)}
    </Alert>
  );
}

export function Waiting() {
  return <Loader m="xl" role="status" aria-label="Loading" />;
}

export function Head({ title, children }: { title: ReactNode; children?: ReactNode }) {
  return (
    <Group justify="space-between" mb="md" gap="sm">
      <Title order={1} size="h2">
        {title}
      </Title>
      <Group gap="xs">{children}</Group>
    </Group>
  );
}

export function Sheet({ title, aside, children }: { title?: string; aside?: ReactNode; children: ReactNode }) {
  return (
    <section className="sheet" style={{ padding: 16 }} {...(title ? { 'aria-label': title } : {})}>
      {title && (
        <Group justify="space-between" mb="sm">
          <Title order={2} size="h5">
            {title}
          </Title>
          {aside}
        </Group>
      )}
      {children}
    </section>
  );
}

export function Fact({ label, children }: { label: string; children: ReactNode }) {
  return (
    <div>
      <Text size="xs" className="quiet">
        {label}
      </Text>
      <Text component="div" size="sm" fw={500} style={{ overflowWrap: 'anywhere' }}>
        {children}
      </Text>
    </div>
  );
}

/** Says a text to screen readers when it has changed, at most every ten seconds. */
export function Spoken({ text }: { text: string }) {
  const [said, setSaid] = useState(text);
  const last = useRef(0);
  useEffect(() => {
    const wait = Math.max(0, last.current + 10_000 - Date.now());
    const timer = setTimeout(() => {
      last.current = Date.now();
      setSaid(text);
    }, wait);
    return () => clearTimeout(timer);
  }, [text]);
  return (
    <div aria-live="polite" className="mantine-visually-hidden" style={{ position: 'absolute', width: 1, height: 1, overflow: 'hidden', clipPath: 'inset(50%)' }}>
      {said}
    </div>
  );
}

interface ConfirmProps {
  open: boolean;
  title: string;
  children: ReactNode;
  /** What is done, for the button that does it. */
  verb: string;
  act: () => void;
  close: () => void;
}

/** A question before what cannot be undone: the browser's own dialog, which keeps the focus and closes by Escape. */
export function Confirm({ open, title, children, verb, act, close }: ConfirmProps) {
  const ref = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (open) ref.current?.showModal();
    else ref.current?.close();
  }, [open]);
  return (
    <dialog ref={ref} onClose={close} aria-label={title}>
      <Stack>
        <Title order={2} size="h4">
          {title}
        </Title>
        <div>{children}</div>
        <Group justify="flex-end">
          <Button variant="default" onClick={close}>
            Cancel
          </Button>
          {/* White on Mantine's own red is hard to read. */}
          <Button
            color="red.9"
            onClick={() => {
              act();
              close();
            }}
          >
            {verb}
          </Button>
        </Group>
      </Stack>
    </dialog>
  );
}
