import { Checkbox, Group, NativeSelect, Text, useComputedColorScheme } from '@mantine/core';
import { useEffect, useMemo, useRef, useState } from 'react';
import uPlot from 'uplot';
import 'uplot/dist/uPlot.min.css';
import { aligned, metrics, type Points, smoothed, summary } from '../pure/curve';
import { short } from '../pure/format';
import { COLOURS } from './colours';

const HEIGHT = 280;

export interface Named {
  name: string;
  points: Points;
}

/** Curves of one or several jobs over their steps, with the metric to choose. */
export function Curve({ curves }: { curves: readonly Named[] }) {
  const [metric, setMetric] = useState('loss');
  const [smooth, setSmooth] = useState(false);
  const [log, setLog] = useState(false);
  const all = curves.map((one) => one.points);
  const said = curves.map((one) => summary(one.name, one.points, metric)).join('; ');
  return (
    <div>
      <Group mb="xs" gap="md">
        <NativeSelect
          size="xs"
          aria-label="Metric"
          data={metrics(all)}
          value={metric}
          onChange={(event) => setMetric(event.currentTarget.value)}
        />
        <Checkbox size="xs" label="Smooth" checked={smooth} onChange={(event) => setSmooth(event.currentTarget.checked)} />
        <Checkbox size="xs" label="Log scale" checked={log} onChange={(event) => setLog(event.currentTarget.checked)} />
      </Group>
      <Plot curves={curves} metric={metric} smooth={smooth} log={log} said={said} />
      <Text size="xs" className="quiet">
        {said}
      </Text>
    </div>
  );
}

interface PlotProps {
  curves: readonly Named[];
  metric: string;
  smooth: boolean;
  log: boolean;
  said: string;
}

function Plot({ curves, metric, smooth, log, said }: PlotProps) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(null);
  const scheme = useComputedColorScheme('light');
  const names = curves.map((one) => one.name).join('\n');
  const data = useMemo(() => {
    const [steps, ...rows] = aligned(
      curves.map((one) => one.points),
      metric,
    );
    return [steps, ...rows.map((row) => (smooth ? smoothed(row, 0.8) : row))] as uPlot.AlignedData;
  }, [curves, metric, smooth]);
  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const ink = scheme === 'dark' ? '#a6a7ab' : '#5c636a';
    const grid = { stroke: scheme === 'dark' ? '#2c2e33' : '#e9ecef', width: 1 };
    const axis = { stroke: ink, grid, ticks: grid, font: '12px system-ui, sans-serif' };
    const labels = names.split('\n');
    const made = new uPlot(
      {
        width: element.clientWidth,
        height: HEIGHT,
        // eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment -- uPlot declares it const, without values
        scales: { x: { time: false }, y: { distr: log ? 3 : 1 } },
        axes: [
          { ...axis, label: 'step', labelFont: axis.font, labelSize: 20, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
          { ...axis, size: 64, values: (_, ticks) => ticks.map((one) => short(one)) },
        ],
        series: [
          { label: 'step' },
          ...labels.map((label, at) => ({
            label,
            stroke: COLOURS[scheme][at % 6] ?? ink,
            width: 2,
            spanGaps: true,
            points: { show: false },
            value: (_: uPlot, value: number | null) => short(value),
          })),
        ],
        legend: { show: labels.length > 1 },
        cursor: { y: false },
      },
      [[], ...labels.map(() => [])],
      element,
    );
    plot.current = made;
    const watch = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: HEIGHT }));
    watch.observe(element);
    return () => {
      watch.disconnect();
      made.destroy();
    };
  }, [names, scheme, log]);
  useEffect(() => plot.current?.setData(data), [data, names, scheme, log]);
  return <div ref={box} role="img" aria-label={said} style={{ minHeight: HEIGHT }} />;
}
