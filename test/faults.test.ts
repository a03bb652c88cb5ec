/**
 * Real processes under faults: whatever happens, the run ends with the very weights of one that nothing happened to, every
 * step once, the culprit named, and no process left. `npm run test:faults` plays the whole matrix, `npm test` the rows that
 * cover every fault and every phase.
 */
import test from 'ava';
import { MATRIX, type Row } from './faults/matrix.ts';
import { type Outcome, play, processesOf } from './faults/world.ts';
import { temporaryFolder } from './training.ts';

const rows = process.env['BRAID_FAULTS'] === 'all' ? MATRIX : MATRIX.filter(({ covering }) => covering);
/** Faults that cost somebody its place: it is named. */
const COSTLY = new Set(['SIGKILL', 'SIGSTOP', 'connection cut', 'garbage bytes']);

const undisturbed = new Map<Row['placement'], Promise<Outcome>>();
function calm(placement: Row['placement']): Promise<Outcome> {
  const known =
    undisturbed.get(placement) ??
    (async () => {
      await using folder = temporaryFolder();
      return await play(folder, placement, null);
    })();
  undisturbed.set(placement, known);
  return known;
}

for (const row of rows) {
  const { what, who, phase, placement } = row;
  test.serial(`${what}, ${who}, ${phase} (${placement})`, async (t) => {
    t.timeout(240_000);
    const expected = await calm(placement);
    t.is(expected.code, 0, expected.output);
    await using folder = temporaryFolder();
    const found = await play(folder, placement, row);
    t.true(found.fired, `its moment did not come:\n${found.output}`);
    t.is(found.code, 0, found.output);
    t.deepEqual(found.steps, [0, 1, 2, 3, 4, 5, 6, 7]);
    t.deepEqual(found.tensors, expected.tensors);
    if (who === 'worker' && COSTLY.has(what) && phase !== 'join')
      t.regex(found.output, /disturbed at step \d: worker \d/);
    if (what === 'delayed') t.notRegex(found.output, /disturbed/);
    if (what === 'disk full') t.regex(found.output, /EFBIG|ENOSPC|file too large/i);
    t.deepEqual(processesOf(folder.path), []);
  });
}
