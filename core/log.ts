/** Log lines for people (stderr) or machines (JSON lines). Time and the sink come in as arguments. */

export type Level = 'debug' | 'info' | 'warn' | 'error';
export type Fields = Record<string, unknown>;

export interface Log {
  debug(message: string, fields?: Fields): void;
  info(message: string, fields?: Fields): void;
  warn(message: string, fields?: Fields): void;
  error(message: string, fields?: Fields): void;
  /** The same log, with fields that every line of it carries. */
  with(fields: Fields): Log;
}

export interface LogOptions {
  format: 'human' | 'json';
  /** Lines below it are dropped. */
  level: Level;
  write(line: string): void;
  now(): Date;
  fields?: Fields;
}

const LEVELS: Level[] = ['debug', 'info', 'warn', 'error'];

/**
 * human: `13:55:15 warn  worker 1 left  rank=1 host=a`; json: `{"time":"...","level":"warn","message":"...","rank":1}`.
 */
export function createLog(options: LogOptions): Log {
  const { format, level: lowest, write, now, fields: common = {} } = options;
  const line = (level: Level) => (message: string, fields?: Fields) => {
    if (LEVELS.indexOf(level) < LEVELS.indexOf(lowest)) return;
    const all = { ...common, ...fields };
    const time = now();
    if (format === 'json') write(`${JSON.stringify({ time: time.toISOString(), level, message, ...all })}\n`);
    else write(`${time.toTimeString().slice(0, 8)} ${level.padEnd(5)} ${message}${human(all)}\n`);
  };
  return {
    debug: line('debug'),
    info: line('info'),
    warn: line('warn'),
    error: line('error'),
    with: (fields) => createLog({ ...options, fields: { ...common, ...fields } }),
  };
}

/** Drops everything: for callers that show progress in their own way. */
export const silentLog: Log = createLog({ format: 'json', level: 'error', write: () => {}, now: () => new Date(0) });

function human(fields: Fields): string {
  const pairs = Object.entries(fields).map(([key, value]) => {
    const text = typeof value === 'string' ? value : JSON.stringify(value);
    return `${key}=${/[\s"]/.test(text) ? JSON.stringify(text) : text}`;
  });
  return pairs.length === 0 ? '' : `  ${pairs.join(' ')}`;
}
