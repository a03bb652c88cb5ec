/**
 * braid.proto in TypeScript: its messages, and its services as plain interfaces.
 *
 * One interface a service, the same for both ends: a server implements it (handlers.ts), a client is one (calls.ts).
 * A unary rpc is a function to a promise, a server stream one to messages, a client stream one from messages.
 * test/proto.test.ts compares the fields here with braid.proto's.
 */

/** Where a call ends early. On a client: cancels it. On a server: aborts when the client has cancelled or gone. */
export interface Call {
  readonly signal: AbortSignal;
  /** Client only: how long the whole call may take. Absent: forever. */
  readonly timeoutMs?: number;
}

/** What one end sends and the other reads with `for await`, each at its own pace. */
export type Messages<T> = AsyncIterable<T> | Iterable<T>;

export interface CoordinatorService {
  join(request: JoinRequest, call: Call): Messages<JoinResponse>;
  leave(request: LeaveRequest, call: Call): Promise<StepResponse>;
  watch(request: WatchRequest, call: Call): Promise<WatchResponse>;
  shards(request: ShardsRequest, call: Call): Messages<Part>;
}

export interface WorkerService {
  prepare(request: PrepareRequest, call: Call): Promise<PrepareResponse>;
  status(request: StatusRequest, call: Call): Promise<StatusResponse>;
  trace(request: TraceRequest, call: Call): Promise<TraceResponse>;
  readState(request: StepRequest, call: Call): Messages<Part>;
  writeState(parts: Messages<Part>, call: Call): Promise<StepResponse>;
  hashState(request: StepRequest, call: Call): Promise<HashStateResponse>;
  compute(request: ComputeRequest, call: Call): Promise<ComputeResponse>;
  forward(request: ForwardRequest, call: Call): Messages<Part>;
  backward(parts: Messages<Part>, call: Call): Promise<StepResponse>;
  inspect(request: StepRequest, call: Call): Promise<InspectResponse>;
  reduce(request: StepRequest, call: Call): Promise<ReduceResponse>;
  commit(request: CommitRequest, call: Call): Promise<StepResponse>;
  evaluate(request: StepRequest, call: Call): Promise<EvaluateResponse>;
  stop(request: StepRequest, call: Call): Promise<StepResponse>;
}

export interface JoinRequest {
  version: string;
  address: string;
  exchangeAddress: string;
  host: string;
  pid: number;
  threads: number;
  device: string;
  generation: number;
}

export interface JoinResponse {
  run: string;
  member: number;
  secret: string;
  over: boolean;
}

export interface LeaveRequest {
  run: string;
  member: number;
}

export interface WatchRequest {
  metrics?: boolean;
}

export interface WatchResponse {
  run: string;
  generation: number;
  step: number;
  steps: number;
  epoch: number;
  epochs: number;
  imagesPerSecond: number;
  secondsLeft: number;
  members: MemberStatus[];
  events: string[];
  /** In Prometheus's text format; '' unless asked for. */
  metrics: string;
}

export interface MemberStatus {
  member: number;
  host: string;
  pid: number;
  device: string;
  state: string;
  rank?: number;
  status?: StatusResponse;
  seenSeconds: number;
  slow: boolean;
  imagesPerSecond: number;
}

export type Split = 'SPLIT_UNSPECIFIED' | 'SPLIT_TRAIN' | 'SPLIT_TEST';

export interface ShardsRequest {
  run: string;
  generation: number;
  split: Split;
  replica: number;
  firstStep: number;
}

export interface PrepareRequest {
  run: string;
  generation: number;
  recipe: string;
  rank: number;
  replica: number;
  branch?: number;
  shardSizes: number[];
  height: number;
  width: number;
  channels: number;
  classes: number;
  exchangeAddresses: string[];
  groups: ReductionGroup[];
  recordBytes: number;
  trainIndex: string;
  testIndex: string;
}

export interface ReductionGroup {
  segment: string;
  ranks: number[];
  topology: Topology;
}

export type Topology = 'TOPOLOGY_UNSPECIFIED' | 'TOPOLOGY_MESH' | 'TOPOLOGY_RING';

export interface PrepareResponse {
  variables: string;
  stateLength: number;
  rounds: Round[];
  classifiers: string[];
  outputLengths: number[];
  held?: Position;
}

export interface Position {
  step: number;
  round: number;
  lossScale: number;
  goodUpdates: number;
}

export interface StatusRequest {
  run: string;
}

export interface StatusResponse {
  member: number;
  generation: number;
  step: number;
  phase: string;
  phaseSeconds: number;
  residentBytes: number;
  readyShards: number;
  deviceBytes: number;
  eventLoopLagSeconds: number;
}

export interface TraceRequest {
  run: string;
}

export interface TraceResponse {
  nowMs: number;
  spans: TraceSpan[];
}

export interface TraceSpan {
  name: string;
  spanId: string;
  parentId: string;
  startMs: number;
  endMs: number;
  attributes: string;
}

export interface Round {
  gradientLength: number;
  segments: string[];
  losses: string[];
}

/** Where a message belongs; every message of the Worker service has these three. */
export interface StepRequest {
  run: string;
  generation: number;
  step: number;
}

// biome-ignore lint/complexity/noBannedTypes: a message without fields
export type StepResponse = {};

export interface HashStateResponse {
  sha256: Uint8Array;
}

export interface ComputeRequest {
  run: string;
  generation: number;
  step: number;
  distillWeight: number;
  shardWeight: number;
  round: number;
  lossScale: number;
}

export interface ComputeResponse {
  losses: number[];
}

export interface ForwardRequest {
  run: string;
  generation: number;
  step: number;
  split: Split;
  shardWeight: number;
  round: number;
  microBatch: number;
  lossScale: number;
}

export interface ReduceResponse {
  segmentNorms: number[];
  sentBytes: number;
  receivedBytes: number;
  culprit: boolean;
  deviceSeconds: number;
  inputSeconds: number;
}

export interface InspectResponse {
  badSamples: BadSample[];
}

export interface BadSample {
  place: number;
  sample: number;
  reason: string;
}

export interface CommitRequest {
  run: string;
  generation: number;
  step: number;
  learningRate: number;
  last: boolean;
  round: number;
  skip: boolean;
  lossScale: number;
  goodUpdates: number;
}

export interface EvaluateResponse {
  scores: ClassifierScore[];
}

export interface ClassifierScore {
  samples: number;
  top1: number;
  top5: number;
  lossSum: number;
  bins: number[];
}

export interface Part {
  run: string;
  generation: number;
  step: number;
  total: number;
  offset: number;
  data: Uint8Array;
  crc32: number;
  last: boolean;
  round: number;
  lossScale: number;
  goodUpdates: number;
}
