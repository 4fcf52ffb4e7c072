import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';

/** The module as a browser has it that was led to an address. */
async function at(address: string): Promise<{ api: typeof import('../src/api'); kept: Map<string, string> }> {
  const kept = new Map([['tunesmith-token', 'mine']]);
  vi.stubGlobal('location', new URL(address));
  vi.stubGlobal('history', { replaceState: () => undefined });
  vi.stubGlobal('sessionStorage', { getItem: (key: string) => kept.get(key) ?? null, setItem: (key: string, value: string) => kept.set(key, value) });
  return { api: await import('../src/api'), kept };
}

beforeEach(() => { vi.resetModules(); });
afterEach(() => { vi.unstubAllGlobals(); });

describe('a token in the address', () => {
  test.each([['http://127.0.0.1:8000/#token=given', 'given'], ['https://console.example.com/#token=given', 'mine']])(
    'of %s: %s is used', async (address, used) => {
      const { kept } = await at(address);
      expect(kept.get('tunesmith-token')).toBe(used);
    });
});

describe('a stream', () => {
  test('ends where nobody reads it any more', async () => {
    const { api } = await at('http://127.0.0.1/');
    const ended = vi.fn();
    const body = new ReadableStream({ start: (control) => { control.enqueue(new TextEncoder().encode('one\n')); }, cancel: ended });
    vi.stubGlobal('fetch', () => Promise.resolve(new Response(body)));
    for await (const some of api.lines('x', new AbortController().signal)) {
      expect(some).toEqual(['one']);
      break;
    }
    await vi.waitFor(() => { expect(ended).toHaveBeenCalled(); });
  });
});
