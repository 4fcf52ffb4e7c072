import { Alert, Button, Group, NativeSelect, Text, Textarea, TextInput } from '@mantine/core';
import { useEffect, useRef, useState } from 'react';
import { lines, Refusal, space } from '../api';
import { useResources, useTitle } from '../hooks';
import { Failure, Head, Spoken, Waiting } from '../parts/Pieces';
import { piece } from '../pure/lines';
import { short } from '../pure/format';
import { served } from '../pure/make';

interface Said {
  role: 'user' | 'assistant';
  content: string;
  /** For people: how fast it came. */
  note?: string;
}

interface Side {
  model: string;
  said: Said[];
  error: string;
  busy: boolean;
}

const EMPTY: Side = { model: '', said: [], error: '', busy: false };
const LABELS = ['Left model', 'Right model'];

/** Two models answer the same question side by side, as the words come. */
export default function Playground({ namespace, deployment }: { namespace: string; deployment: string }) {
  useTitle('Playground');
  const { data, error } = useResources(namespace);
  const [sides, setSides] = useState<[Side, Side]>([EMPTY, EMPTY]);
  const [text, setText] = useState('');
  const [system, setSystem] = useState('');
  const [heat, setHeat] = useState('0.7');
  const [most, setMost] = useState('256');
  const [top, setTop] = useState('1');
  const stop = useRef<AbortController>(null);
  useEffect(() => () => stop.current?.abort(), []);
  if (!data) return error ? <Failure error={error} /> : <Waiting />;
  const models = served([...data].sort((a, b) => Number(b.name === deployment) - Number(a.name === deployment)));
  const defaults = [models[0] ?? '', models[1] ?? models[0] ?? ''];
  const chosen = sides.map((side, at) => (models.includes(side.model) ? side.model : (defaults[at] ?? '')));
  const busy = sides.some((side) => side.busy);
  const set = (at: number, change: (side: Side) => Partial<Side>) =>
    setSides((old) => old.map((side, index) => (index === at ? { ...side, ...change(side) } : side)) as [Side, Side]);

  const answer = async (at: number, question: string, signal: AbortSignal) => {
    const [where = '', model = ''] = (chosen[at] ?? '').split('/');
    const history: Said[] = [...(sides[at]?.said ?? []), { role: 'user', content: question }];
    // What answers goes on answering, whichever models come meanwhile.
    set(at, () => ({ model: chosen[at] ?? '', said: [...history, { role: 'assistant', content: '' }], error: '', busy: true }));
    const messages = [...(system ? [{ role: 'system', content: system }] : []), ...history.map(({ role, content }) => ({ role, content }))];
    const options = { temperature: heat, max_tokens: most, top_p: top };
    const numbers = Object.fromEntries(Object.entries(options).flatMap(([key, one]) => (one === '' ? [] : [[key, Number(one)]])));
    const body = { model, messages, stream: true, ...numbers };
    const began = performance.now();
    let first = 0;
    let count = 0;
    let content = '';
    try {
      const path = `${space(namespace)}/modeldeployments/${where}/v1/chat/completions`;
      for await (const some of lines(path, signal, { method: 'POST', body: JSON.stringify(body) })) {
        for (const line of some) {
          const more = piece(line);
          if (!more) continue;
          first ||= performance.now();
          count += 1;
          content += more;
        }
        const seconds = (performance.now() - first) / 1000;
        const speed = count > 1 && seconds > 0 ? `, ${short((count - 1) / seconds)} pieces/s` : '';
        const note = first ? `first after ${short((first - began) / 1000)} s${speed}` : '';
        set(at, () => ({ said: [...history, { role: 'assistant', content, note }] }));
      }
      set(at, () => ({ busy: false }));
    } catch (problem) {
      // A question without an answer can be asked again.
      if (!content) setText((now) => now || question);
      const said = problem instanceof Error ? problem.message : String(problem);
      const hint = problem instanceof Refusal ? problem.hint : '';
      set(at, ({ said: old }) => ({
        busy: false,
        said: content ? old : history.slice(0, -1),
        error: signal.aborted ? '' : [said, hint].filter(Boolean).join('. '),
      }));
    }
  };
  const ask = () => {
    const question = text.trim();
    if (!question || busy || !models.length) return;
    const control = new AbortController();
    stop.current = control;
    setText('');
    void Promise.all(sides.map((_, at) => answer(at, question, control.signal)));
  };
  return (
    <>
      <Head title="Playground">
        {busy ? (
          <Button variant="light" color="red" onClick={() => stop.current?.abort()}>
            Stop
          </Button>
        ) : (
          <Button variant="default" onClick={() => setSides((old) => old.map((side) => ({ ...EMPTY, model: side.model })) as [Side, Side])}>
            Clear
          </Button>
        )}
      </Head>
      {!models.length && <Alert mb="md">Namespace {namespace} serves no models yet: make a ModelDeployment.</Alert>}
      <Spoken text={busy ? 'The models answer' : sides.map((side, at) => `${LABELS[at] ?? ''}: ${side.said.at(-1)?.content ?? ''}`).join('. ')} />
      <div className="talk">
        {sides.map((side, at) => (
          <section key={at} className="sheet" style={{ padding: 14 }} aria-label={LABELS[at]}>
            <NativeSelect
              size="sm"
              aria-label={LABELS[at]}
              data={models}
              value={chosen[at] ?? ''}
              onChange={(event) => {
                const model = event.currentTarget.value;
                set(at, () => ({ ...EMPTY, model }));
              }}
              disabled={busy}
              mb="sm"
            />
            <Answers side={side} label={LABELS[at] ?? ''} />
          </section>
        ))}
      </div>
      <form
        className="sheet"
        style={{ padding: 14, marginTop: 16 }}
        onSubmit={(event) => {
          event.preventDefault();
          ask();
        }}
      >
        <Textarea
          aria-label="Message"
          placeholder="Ask both. Enter sends, Shift+Enter begins a new line."
          autosize={false}
          rows={3}
          value={text}
          onChange={(event) => setText(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === 'Enter' && !event.shiftKey && !event.nativeEvent.isComposing) {
              event.preventDefault();
              ask();
            }
          }}
        />
        <Group mt="sm" align="end" gap="sm">
          <TextInput size="xs" style={{ flex: 1, minWidth: 220 }} label="System message" placeholder="none" value={system} onChange={(event) => setSystem(event.currentTarget.value)} />
          <TextInput size="xs" w={100} type="number" min={0} max={2} step={0.1} label="Temperature" value={heat} onChange={(event) => setHeat(event.currentTarget.value)} />
          <TextInput size="xs" w={100} type="number" min={0.05} max={1} step={0.05} label="Top p" value={top} onChange={(event) => setTop(event.currentTarget.value)} />
          <TextInput size="xs" w={100} type="number" min={1} max={32768} label="Most tokens" value={most} onChange={(event) => setMost(event.currentTarget.value)} />
          <Button type="submit" size="sm" loading={busy} disabled={!models.length}>
            Send
          </Button>
        </Group>
      </form>
    </>
  );
}

function Answers({ side, label }: { side: Side; label: string }) {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [side.said]);
  return (
    // eslint-disable-next-line jsx-a11y/no-noninteractive-tabindex
    <div ref={box} className="answers" tabIndex={0} role="log" aria-live="off" aria-label={`Answers of the ${label.toLowerCase()}`} style={{ display: 'flex', flexDirection: 'column', gap: 10 }}>
      {side.said.map((one, at) => (
        <div key={at} className={`said ${one.role}`}>
          {one.content || (side.busy ? '…' : '')}
          {one.note && (
            <Text size="xs" className="quiet" mt={4}>
              {one.note}
            </Text>
          )}
        </div>
      ))}
      {side.said.length === 0 && !side.error && (
        <Text size="sm" className="quiet">
          No question was asked yet.
        </Text>
      )}
      {side.error && (
        <Alert color="red" role="alert">
          {side.error}
        </Alert>
      )}
    </div>
  );
}
