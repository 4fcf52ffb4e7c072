import { Lines } from './pure/lines';
import type { Problem } from './pure/problems';

const TOKEN = 'tunesmith-token';
/**
 * The token that `tunesmith console` put into the address, taken out of it and kept for this tab only. It serves on this
 * machine; elsewhere a link would make its reader act as somebody else.
 */
const given = /[#&]token=([\w-]+)/.exec(location.hash)?.[1];
if (given && ['127.0.0.1', 'localhost'].includes(location.hostname)) {
  sessionStorage.setItem(TOKEN, given);
  history.replaceState(null, '', `${location.pathname}#/`);
}

export const token = {
  get: (): string => sessionStorage.getItem(TOKEN) ?? '',
  set: (value: string): void => sessionStorage.setItem(TOKEN, value),
  clear: (): void => sessionStorage.removeItem(TOKEN),
};

/** What the server refused: its message, what to do, and the fields that are wrong. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly hint = '',
    readonly problems: Problem[] = [],
  ) {
    super(message);
  }
}

interface ErrorBody {
  error?: { message?: string; hint?: string; problems?: Problem[] };
  message?: string;
}

const ended = new Set<() => void>();

/** Have `act` called when a token is no longer good. */
export function onEnded(act: () => void): () => void {
  ended.add(act);
  return () => ended.delete(act);
}

/** One request. Raises Refusal. */
export async function request(path: string, options: RequestInit = {}, content = 'application/json'): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(`./api/${path}`, {
      ...options,
      headers: { Authorization: `Bearer ${token.get()}`, 'Content-Type': content },
      credentials: 'omit',
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === 'AbortError') throw error;
    throw new Refusal(0, 'the console does not answer', 'is `tunesmith console` still running?');
  }
  if (answer.ok) return answer;
  const body = (await answer.json().catch(() => ({}))) as ErrorBody;
  if (answer.status === 401) for (const act of ended) act();
  const said = body.error ?? { message: body.message ?? `HTTP ${answer.status}` };
  throw new Refusal(answer.status, said.message ?? `HTTP ${answer.status}`, said.hint, said.problems);
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await (await request(path, signal ? { signal } : {})).json()) as T;
}

export async function send<T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> {
  const options: RequestInit = { method };
  if (signal) options.signal = signal;
  if (body !== undefined) options.body = JSON.stringify(body);
  return (await (await request(path, options)).json()) as T;
}

/** The lines of an answer as they come. */
export async function* lines(path: string, signal: AbortSignal, options: RequestInit = {}): AsyncGenerator<string[]> {
  const answer = await request(path, { ...options, signal });
  const cut = new Lines();
  const reader = answer.body?.pipeThrough(new TextDecoderStream()).getReader();
  try {
    while (reader) {
      const { done, value } = await reader.read();
      if (done) break;
      const whole = cut.push(value);
      if (whole.length) yield whole;
    }
    const rest = cut.end();
    if (rest.length) yield rest;
  } finally {
    // Who stops reading, as at an error in a line, wants no more of it.
    reader?.cancel().catch(() => undefined);
  }
}

export function space(namespace: string): string {
  return `namespaces/${namespace}`;
}
