import { useEffect, useRef, useState } from 'react';
import { lines, Refusal } from './api';

const AGAIN_MS = 3000;

/**
 * What a stream of JSON lines adds up to. Another `path` begins it anew; null: no stream. A stream that breaks is opened
 * again, from its beginning; what is known of it stays until then.
 */
export function useStream<S>(
  path: string | null,
  empty: S,
  join: (state: S, more: never[]) => S,
): { state: S; error: string; open: boolean } {
  const [shown, setShown] = useState({ path, state: empty, error: '', open: path !== null });
  const held = useRef({ empty, join });
  useEffect(() => {
    if (path === null) return;
    const stop = new AbortController();
    const read = async (): Promise<void> => {
      let state = held.current.empty;
      try {
        for await (const some of lines(path, stop.signal)) {
          const parsed = some.map((line) => JSON.parse(line) as { error?: string });
          const bad = parsed.find((one) => typeof one.error === 'string');
          if (bad?.error) throw new Refusal(502, bad.error);
          state = held.current.join(state, parsed as never[]);
          setShown({ path, state, error: '', open: true });
        }
        setShown({ path, state, error: '', open: false });
      } catch (error) {
        if (stop.signal.aborted) return;
        const said = error instanceof Error ? error.message : String(error);
        setShown((old) => ({ ...old, error: said, open: false }));
        const again = setTimeout(() => void read(), AGAIN_MS);
        stop.signal.addEventListener('abort', () => clearTimeout(again));
      }
    };
    void read();
    return () => stop.abort();
  }, [path]);
  return shown.path === path ? shown : { state: empty, error: '', open: path !== null };
}
