/**
 * Set-up cannot go on: what is wrong (message) and what to do about it (remedy). Whoever started it sees only these two.
 * `exitCode` is 1, or 128 + signal when somebody stopped it.
 */
export class SetupFailure extends Error {
  /** @param {string} message @param {string} remedy @param {{exitCode?: number, output?: string, killer?: string | null}} [options] */
  constructor(message, remedy, { exitCode = 1, output = '', killer = null } = {}) {
    super(message);
    this.name = 'SetupFailure';
    this.remedy = remedy;
    this.exitCode = exitCode;
    /** The last of what a failed command printed. */
    this.output = output;
    /** The signal that ended a failed command, or null. */
    this.killer = killer;
  }
}

/**
 * What the output of npm, pip, unpack.py or g++ says about why it failed, as one failure with its remedy.
 * @param {string} what the step, as in "Installing the npm packages"
 * @param {string} output the last of what the command printed
 * @param {string | null} [killer] the signal that ended the command
 * @returns {SetupFailure}
 */
export function failureFrom(what, output, killer = null) {
  const options = { output, killer };
  for (const { pattern, message, remedy } of CAUSES) {
    if (pattern.test(output)) return new SetupFailure(`${what} failed: ${message}.`, remedy, options);
  }
  if (killer !== null) {
    return new SetupFailure(
      `${what} was killed by ${killer}.`,
      'run the same command again; SIGKILL often means that memory ran out.',
      options,
    );
  }
  return new SetupFailure(
    `${what} failed.`,
    'the lines above say why; after mending it, run the same command again.',
    options,
  );
}

const SHOWN_LINES = 6;
const SHOWN_COLUMNS = 160; // pip's complaints about a network run to 300

/** What a person sees of a failure. @param {SetupFailure} failure @returns {string} lines */
export function explain({ message, remedy, output }) {
  // Stack frames say nothing about the machine.
  const lines = output.split('\n').filter((line) => line.trim() !== '' && !/^\s+at /.test(line));
  const shown = lines.slice(-SHOWN_LINES).map((line) => `  | ${line.slice(0, SHOWN_COLUMNS)}\n`);
  if (shown.length > 0) shown.push('  (all of it: .braid/setup.log)\n');
  return `${shown.join('')}braid: ${message}\n  Remedy: ${remedy}\n`;
}

/** In order: the first that matches is the cause, since a full disk can also break a connection or a hash. */
const CAUSES = [
  {
    pattern: /ENOSPC|No space left on device|Errno 28|Disk quota exceeded|EDQUOT/,
    message: 'the disk is full',
    remedy:
      'free some space (2 GB for CPU, 10 GB for GPU), then run the same command again: it goes on where it stopped.',
  },
  {
    pattern: /DO NOT MATCH THE HASHES|EINTEGRITY|hash mismatch/,
    message: 'what was downloaded is not what the pinned hash says',
    remedy:
      'run it again; if it stays so, the package index serves another file than the one Braid was tested with: ask whoever runs it.',
  },
  {
    pattern:
      /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|Temporary failure in name resolution|Name or service not known|NewConnectionError|Max retries exceeded|Network is unreachable|ProxyError|ReadTimeoutError|Connection refused|socket hang up|network request .* failed/i,
    message: 'the package registry cannot be reached',
    remedy:
      'check the network (npm and pip must reach their registries; a proxy goes in HTTPS_PROXY), then run the same command again: it goes on where it stopped.',
  },
  {
    pattern: /No matching distribution found/,
    message: 'the Python package index has no such wheel',
    remedy:
      'upgrade pip (python3 -m pip install --user --upgrade pip), or point pip at a complete index (PIP_INDEX_URL).',
  },
  {
    pattern: /can only install packages when your package\.json and package-lock\.json/,
    message: 'package.json and package-lock.json disagree',
    remedy: 'run `npm install --ignore-scripts` to bring them into step.',
  },
  {
    pattern: /EACCES|Permission denied|EROFS|Read-only file system/,
    message: 'a file or folder cannot be written',
    remedy: 'make the project folder yours (for example: chown -R "$USER" .), then run the same command again.',
  },
];
