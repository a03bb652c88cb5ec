/** One line about a transfer, now and then: bytes, rate, time left. */

const LINE_INTERVAL_MS = 2000;

export class Progress {
  private readonly what: string;
  private readonly log: (line: string) => void;
  private readonly nowMs: () => number;
  private readonly startMs: number;
  private lastLineMs: number;
  /** Bytes that were there before: not part of the rate. */
  private resumed: number | null = null;

  constructor(what: string, log: (line: string) => void, nowMs: () => number) {
    this.what = what;
    this.log = log;
    this.nowMs = nowMs;
    this.startMs = nowMs();
    this.lastLineMs = this.startMs;
  }

  /** @param total bytes, null where nobody says */
  at(done: number, total: number | null): void {
    this.resumed ??= done;
    const now = this.nowMs();
    if (now - this.lastLineMs < LINE_INTERVAL_MS) return;
    this.lastLineMs = now;
    this.log(formatTransfer(this.what, done, total, ((done - this.resumed) * 1000) / (now - this.startMs)));
  }
}

/** "cifar-10-binary.tar.gz  42.0 of 170.1 MB  10.5 MB/s  13 s left" */
export function formatTransfer(what: string, done: number, total: number | null, bytesPerSecond: number): string {
  const amount = total === null ? `${megabytes(done)} MB` : `${megabytes(done)} of ${megabytes(total)} MB`;
  const left = total !== null && bytesPerSecond > 0 ? `  ${Math.ceil((total - done) / bytesPerSecond)} s left` : '';
  return `${what}  ${amount}  ${megabytes(bytesPerSecond)} MB/s${left}`;
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(1);
}
