/** One line a check, and how many there were. */
export class Report {
  passed = 0;
  readonly failed: string[] = [];
  private readonly write: (line: string) => void;

  constructor(write: (line: string) => void) {
    this.write = write;
  }

  async check(what: string, run: () => Promise<unknown>): Promise<void> {
    const start = performance.now();
    try {
      await run();
      this.passed++;
      this.write(`  ✔ ${what} (${((performance.now() - start) / 1000).toFixed(1)} s)`);
    } catch (error) {
      this.failed.push(what);
      this.write(`  ✘ ${what}\n${String((error as Error).message).replace(/^/gm, '      ')}`);
    }
  }

  note(line: string): void {
    this.write(`      ${line}`);
  }
}
