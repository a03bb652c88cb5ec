import test from 'ava';
import { createLog } from '../core/log.ts';

const now = () => new Date(Date.UTC(2026, 0, 2, 3, 4, 5));

function logged(format: 'human' | 'json'): { log: ReturnType<typeof createLog>; lines: string[] } {
  const lines: string[] = [];
  return { lines, log: createLog({ format, level: 'info', now, write: (line) => lines.push(line) }) };
}

test('a JSON log has one object a line, with its own fields and those of its parent', (t) => {
  const { log, lines } = logged('json');
  log.with({ run: 'r' }).warn('worker 1 left', { rank: 1 });
  t.deepEqual(JSON.parse(lines[0]!), {
    time: '2026-01-02T03:04:05.000Z',
    level: 'warn',
    message: 'worker 1 left',
    run: 'r',
    rank: 1,
  });
  t.true(lines[0]!.endsWith('}\n'));
});

test('a human log has time, level, message and quoted fields, and drops what is below its level', (t) => {
  const { log, lines } = logged('human');
  log.debug('not shown');
  log.info('joined', { device: 'NVIDIA H100', rank: 0 });
  t.is(lines.length, 1);
  t.regex(lines[0]!, /^\d\d:\d\d:05 info {2}joined {2}device="NVIDIA H100" rank=0\n$/);
});
