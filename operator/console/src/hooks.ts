import { useQuery } from '@tanstack/react-query';
import { useEffect, useState } from 'react';
import { get, space } from './api';
import { PLURALS, type Detail, type Kind, type Summary } from './types';

const POLL_MS = 2000;

export function useTitle(title: string): void {
  useEffect(() => {
    document.title = `${title} · tunesmith`;
  }, [title]);
}

/** All resources of a namespace, as they are now. */
export function useResources(namespace: string) {
  return useQuery({
    queryKey: ['resources', namespace],
    queryFn: ({ signal }) => get<Summary[]>(`${space(namespace)}/resources`, signal),
    refetchInterval: POLL_MS,
  });
}

export function useDetail(namespace: string, plural: string, name: string) {
  return useQuery({
    queryKey: ['detail', namespace, plural, name],
    queryFn: ({ signal }) => get<Detail>(`${space(namespace)}/${plural}/${name}`, signal),
    refetchInterval: POLL_MS,
  });
}

/** Where a resource's page is, below the namespace. */
export function pathOf(one: { namespace: string; kind: Kind; name: string }): string {
  return `/${one.namespace}/${PLURALS[one.kind]}/${one.name}`;
}

/** A value once it has not changed for a while. */
export function useSettled<T>(value: T, milliseconds: number): T {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), milliseconds);
    return () => clearTimeout(timer);
  }, [value, milliseconds]);
  return settled;
}
