/** Cuts text that comes in pieces into lines. */
export class Lines {
  private rest = '';

  /** The lines that a piece completes. */
  push(piece: string): string[] {
    const parts = (this.rest + piece).split('\n');
    this.rest = parts.pop() ?? '';
    return parts;
  }

  /** What is left after the last piece. */
  end(): string[] {
    const last = this.rest;
    this.rest = '';
    return last ? [last] : [];
  }
}

// eslint-disable-next-line no-control-regex
const CODES = /\u001b(?:\[[0-?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\))/g;

/** A line as a terminal leaves it: without the codes for colours, and of a progress bar the last that was drawn. */
export function plain(line: string): string {
  const text = line.replace(CODES, '').replace(/\r+$/, '');
  return text.slice(text.lastIndexOf('\r') + 1);
}

/** The text of one line of a streamed chat completion (server-sent events); null where it has none. */
export function piece(line: string): string | null {
  const data = line.startsWith('data:') ? line.slice(5).trim() : '';
  if (!data || data === '[DONE]') return null;
  const event = JSON.parse(data) as {
    error?: { message?: string };
    choices?: { delta?: { content?: string | null } }[];
  };
  if (event.error) throw new Error(event.error.message ?? 'the model failed');
  return event.choices?.[0]?.delta?.content ?? null;
}
