/** Every way Braid refuses or fails. docs/troubleshooting.md has a section for each. */
export type ErrorCode =
  | 'INVALID_RECIPE' // the recipe, a --set or a flag is wrong: nothing was started
  | 'INVALID_DATA' // a data set is missing, truncated or of another format
  | 'INVALID_CHECKPOINT' // a checkpoint is damaged, of another network, or of another version
  | 'SETUP' // the machine lacks something: a library, a tool, a port, disk space
  | 'RUN_FULL' // every seat of the run is taken at the moment
  | 'CAPTURE' // an operation or a shape that the graph capture cannot record
  | 'DEVICE' // TensorFlow failed while running a phase
  | 'OUT_OF_MEMORY' // a device's memory does not hold the recipe's batch
  | 'PROTOCOL' // a message that no correct peer would send: sizes, checksums, order
  | 'UNAUTHORIZED' // a peer without the token, the run's secret, or a certificate that is believed
  | 'VERSION_MISMATCH' // a peer of another Braid version or run
  | 'STALE_GENERATION' // a message for a membership that has ended
  | 'WORKER_LOST' // a worker died, froze or disconnected
  | 'NON_FINITE' // a loss or a gradient is NaN or infinite
  | 'REPLICAS_DIVERGED' // replicas that must be bitwise identical are not
  | 'CANCELLED' // somebody asked for the end
  | 'INTERNAL'; // a bug in Braid

/**
 * An error for whoever is woken by it: what happened and to whom (message), what to do now (remedy).
 * `details` are for logs and metrics; they never repeat in the message.
 */
export class BraidError extends Error {
  readonly code: ErrorCode;
  readonly remedy: string;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(
    code: ErrorCode,
    message: string,
    options: { remedy?: string; details?: Record<string, unknown>; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? {} : { cause: options.cause });
    this.name = 'BraidError';
    this.code = code;
    this.remedy = options.remedy ?? '';
    this.details = options.details ?? {};
  }
}

/** Anything thrown, as a BraidError: one that already is stays itself. */
export function asBraidError(thrown: unknown, code: ErrorCode = 'INTERNAL'): BraidError {
  if (thrown instanceof BraidError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new BraidError(code, message, { cause: thrown });
}

/**
 * Whether a process that ends so should be started again as it was: workers were lost, no seat was free, or SIGTERM asked
 * for the machine.
 * @param asked why the end was asked for, where it was: an AbortSignal's reason
 */
export function isTemporary({ code }: BraidError, asked: unknown): boolean {
  const signal = asked instanceof BraidError ? asked.details['signal'] : undefined;
  return code === 'WORKER_LOST' || code === 'RUN_FULL' || (code === 'CANCELLED' && signal === 'SIGTERM');
}

/** The nearest of `names` to `given` by edit distance, or undefined when none is near enough to be a slip. */
export function nearest(given: string, names: Iterable<string>): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.ceil(given.length / 3)) + 1;
  for (const name of names) {
    const distance = editDistance(given.toLowerCase(), name.toLowerCase());
    if (distance < bestDistance) {
      best = name;
      bestDistance = distance;
    }
  }
  return best;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1));
    }
    row = next;
  }
  return row[b.length]!;
}
