import { Alert, Group, Text, useComputedColorScheme } from '@mantine/core';
import { bytes } from '../pure/format';
import type { Memory } from '../types';
import { COLOURS } from './colours';

const PARTS = [
  ['weights', 'weightsBytes'],
  ['gradients', 'gradientsBytes'],
  ['optimizer', 'optimizerBytes'],
  ['activations', 'activationsBytes'],
  ['overhead', 'overheadBytes'],
] as const;

/** The estimate of the memory of one device, drawn against what the device has. */
export function MemoryBar({ memory }: { memory: Memory }) {
  const scheme = useComputedColorScheme('light');
  const whole = Math.max(memory.totalBytes, memory.availableBytes ?? 0) || 1;
  const have = memory.availableBytes ? ` of ${bytes(memory.availableBytes)}` : '';
  const tight = memory.availableBytes !== undefined && memory.totalBytes > memory.availableBytes;
  return (
    <div>
      <Group justify="space-between" mb={4}>
        <Text size="sm" fw={600}>
          {bytes(memory.totalBytes)}
          {have} per device
        </Text>
        <Text size="sm" className="quiet">
          {memory.strategy}
        </Text>
      </Group>
      <div className="bar" role="img" aria-label={`Memory of one device: ${bytes(memory.totalBytes)}${have}`}>
        {PARTS.map(([name, key], at) => (
          <div key={name} style={{ width: `${(100 * memory[key]) / whole}%`, background: COLOURS[scheme][at] }} />
        ))}
      </div>
      <Group gap="md" mt={6}>
        {PARTS.map(([name, key], at) => (
          <Text key={name} size="xs" className="quiet nowrap">
            <span className="key" style={{ background: COLOURS[scheme][at] }} />
            {name} {bytes(memory[key])}
          </Text>
        ))}
      </Group>
      {tight ? (
        <Alert color="red" mt="sm" title="It does not fit">
          {memory.summary}
        </Alert>
      ) : (
        <Text size="xs" mt={6} className="quiet">
          {memory.summary}
        </Text>
      )}
    </div>
  );
}
