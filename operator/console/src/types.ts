/** What the server's `/api` answers with: operator/src/tunesmith/console/views.py makes it. */
import type { Problem } from './pure/problems';

export type Kind = 'FineTuneJob' | 'MergeJob' | 'InferenceJob' | 'ModelDeployment';
/** unknown: the server's version cannot read it, and `message` says why; it has no fields of its kind. */
export type State = 'done' | 'failed' | 'paused' | 'running' | 'waiting' | 'unknown';

export const PLURALS: Record<Kind, string> = {
  FineTuneJob: 'finetunejobs',
  MergeJob: 'mergejobs',
  InferenceJob: 'inferencejobs',
  ModelDeployment: 'modeldeployments',
};

export interface Session {
  user: string;
  namespace: string;
  local: boolean;
}

export interface Progress {
  step: number;
  totalSteps: number;
  percent: number;
  text?: string;
  loss?: number;
  tokensPerSecond?: number;
  rowsPerSecond?: number;
  eta?: string;
  peakMemoryBytes?: number;
}

export interface AdapterState {
  name: string;
  state?: 'Waiting' | 'Loading' | 'Ready' | 'Failed';
  uri?: string;
  digest?: string;
  desiredPods?: number;
  readyPods?: number;
  failedPods?: number;
  reason?: string;
  message?: string;
  pods?: { pod: string; state?: string; message?: string; reason?: string }[];
}

export interface Summary {
  kind: Kind;
  name: string;
  namespace: string;
  created: string | null;
  model: string;
  reason: string;
  message: string;
  state: State;
  method?: string;
  tuner?: string;
  nodes?: number;
  suspended?: boolean;
  progress?: Progress | null;
  metrics?: Record<string, number>;
  modelName?: string;
  pods?: { ready: number; wanted: number };
  adapters?: AdapterState[] | number;
}

export interface Condition {
  type: string;
  status: string;
  reason: string;
  message: string;
  lastTransitionTime: string;
}

export interface Attempt {
  number: number;
  reason?: string;
  message?: string;
  startTime?: string;
  endTime?: string;
  resumedStep?: number;
  lastStep?: number;
  nodes?: number;
}

export interface Memory {
  strategy: string;
  weightsBytes: number;
  gradientsBytes: number;
  optimizerBytes: number;
  activationsBytes: number;
  overheadBytes: number;
  totalBytes: number;
  availableBytes?: number;
  summary: string;
  fits?: boolean | null;
}

export interface Manifest {
  apiVersion: string;
  kind: Kind;
  metadata: { name: string; namespace?: string; uid?: string; resourceVersion?: string; [key: string]: unknown };
  spec: Record<string, unknown>;
}

export interface Resource extends Manifest {
  status?: {
    conditions?: Condition[];
    attempts?: Attempt[];
    memory?: Memory;
    artifact?: { kind?: string; uri?: string; digest?: string };
    accounting?: Record<string, unknown>;
    url?: string;
    restarts?: number;
  };
}

export interface Pod {
  name: string;
  attempt: number;
  rank: number;
  phase: string;
  ready: boolean;
  restarts: number;
  node: string | null;
  problem: string | null;
}

export interface Event {
  time: string | null;
  type: string;
  reason: string;
  message: string;
  count: number;
}

export interface Detail {
  resource: Resource;
  summary: Summary;
  /** Fields that the server's version does not know. */
  unknown: string[];
  explained: { meaning: string; todo: string; follows: string } | null;
  pods: Pod[] | null;
  events: Event[] | null;
}

export interface Check {
  problems: Problem[];
  plan?: unknown;
  memory?: Memory | null;
  notes?: string[];
  objects?: unknown[];
}

export interface Starter {
  what: string;
  about: string;
  body: Manifest;
}

export interface LogLine {
  time: string;
  attempt: number;
  rank: number;
  pod: string;
  container: string;
  text: string;
}
