import { Button, Group, NativeSelect, Text } from '@mantine/core';
import { useMutation } from '@tanstack/react-query';
import { useRef, useState } from 'react';
import { Refusal, request, space } from '../api';
import { addresses } from '../pure/make';
import { bytes, tail } from '../pure/format';
import { Failure } from './Pieces';

const MOST_BYTES = 1_000_000;

interface Kept {
  uri: string;
  rows: number | null;
  columns: string[];
}

interface Props {
  namespace: string;
  datasets: unknown;
  /** Called with the address of what was kept, and the dataset that it takes the place of. */
  put: (uri: string, at: number) => void;
}

/** A file of rows from this machine, kept in the cluster for the job: with the user's own rights, as a ConfigMap. */
export function Upload({ namespace, datasets, put }: Props) {
  const input = useRef<HTMLInputElement>(null);
  const known = addresses(datasets);
  const [place, setPlace] = useState(0);
  const at = Math.min(place, known.length);
  const keep = useMutation({
    mutationFn: async (file: File) => {
      if (file.size > MOST_BYTES) {
        const hint = 'Put it on a claim (pvc://), in a bucket (s3://) or a hub (hf://), and give its address below.';
        throw new Refusal(413, `${file.name} has ${bytes(file.size)}; here a file may have 1 MB`, hint);
      }
      const path = `${space(namespace)}/data?file=${encodeURIComponent(file.name)}`;
      const answer = await request(path, { method: 'POST', body: file }, 'application/octet-stream');
      return { file: file.name, ...((await answer.json()) as Kept) };
    },
    onSuccess: ({ uri }) => put(uri, at),
  });
  const kept = keep.data;
  return (
    <div role="group" aria-label="Data from this machine" className="item">
      <Group gap="sm" align="end">
        <input
          ref={input}
          type="file"
          hidden
          aria-label="File of rows"
          accept=".jsonl,.ndjson,.json,.csv,.tsv,.parquet,.arrow,.ipc,.feather,.gz,.zst"
          onChange={(event) => {
            const [file] = event.currentTarget.files ?? [];
            if (file) keep.mutate(file);
            // The same file may be chosen again once it is mended.
            event.currentTarget.value = '';
          }}
        />
        <Button size="sm" variant="light" loading={keep.isPending} onClick={() => input.current?.click()}>
          Upload rows
        </Button>
        {known.length > 0 && (
          <NativeSelect
            size="sm"
            aria-label="Where the file goes"
            style={{ flex: 1, minWidth: 200 }}
            data={[
              ...known.map((uri, index) => ({ value: String(index), label: `for dataset ${index + 1}: ${tail(uri)}` })),
              { value: String(known.length), label: 'for one more dataset' },
            ]}
            value={String(at)}
            onChange={(event) => setPlace(Number(event.currentTarget.value))}
          />
        )}
      </Group>
      <Text size="xs" className="quiet" mt={6}>
        Up to 1 MB, kept as a ConfigMap in {namespace}. For more, give an address below: a hub, a bucket, a claim.
      </Text>
      {keep.error && (
        <div style={{ marginTop: 8 }}>
          <Failure error={keep.error} />
        </div>
      )}
      {kept && (
        <Text size="sm" role="status" mt={6} style={{ overflowWrap: 'anywhere' }}>
          <b>{kept.file}</b>
          {kept.rows === null ? '' : `: ${kept.rows} rows with ${kept.columns.join(', ')}`}. It is <span className="mono">{kept.uri}</span>
        </Text>
      )}
    </div>
  );
}
