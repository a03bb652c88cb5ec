/** `braid doctor`: a row a check, remedies where they are needed, and an exit code that says whether they are. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { examine, type Row, render } from '../setup/doctor.mjs';
import { hostPath, type Machine, thisMachine, which } from '../setup/machine.mjs';

const ROOT = fileURLToPath(new URL('..', import.meta.url)).replace(/\/$/, '');
const HOST_PATH = hostPath(ROOT, process.env);
const CHECKS = 'machine,Node,tools,npm packages,TensorFlow,libraries,GPUs,threads,memory,disk,ports,sockets,data'.split(
  ',',
);

const folders: string[] = [];
test.after.always(() => {
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

/** The rows, by check, of a folder where nothing is set up. */
async function examineFresh(tools: string[], env: NodeJS.ProcessEnv = {}, machine: Partial<Machine> = {}) {
  const root = mkdtempSync(join(tmpdir(), 'braid-doctor-test-'));
  folders.push(root);
  const path = join(root, 'tools');
  mkdirSync(path);
  for (const tool of tools) symlinkSync(which(tool, HOST_PATH)!, join(path, tool));
  const smi = env.SMI;
  if (smi !== undefined) writeFileSync(join(path, 'nvidia-smi'), `#!/bin/sh\n${smi}\n`, { mode: 0o755 });
  const rows = await examine({ root, env: { PATH: path, ...env }, machine: { ...thisMachine(), ...machine } });
  return { rows, row: (check: string): Row => rows.find((row) => row.check === check)! };
}

const ALL_TOOLS = ['npm', 'python3', 'g++'];

test('a fresh clone has every row, and nothing to mend but what set-up brings', async (t) => {
  const { rows, row } = await examineFresh(ALL_TOOLS);
  t.deepEqual(
    rows.map(({ check }) => check),
    CHECKS,
  );
  for (const check of ['npm packages', 'TensorFlow', 'libraries']) {
    t.is(row(check).status, 'note');
    t.regex(row(check).remedy!, /npm start/);
  }
  t.is(row('tools').status, 'ok');
});

test('a missing compiler must be mended, with the command that installs it', async (t) => {
  const { row } = await examineFresh(['npm', 'python3']);
  t.is(row('tools').status, 'mend');
  t.regex(row('tools').found, /missing: g\+\+$/);
  t.regex(row('tools').remedy!, /apt-get install g\+\+/);
});

test('another processor, a full disk and a wrong BRAID_TENSORFLOW must be mended', async (t) => {
  const { row } = await examineFresh(
    ALL_TOOLS,
    { BRAID_TENSORFLOW: '/nowhere' },
    { arch: 'arm64', freeBytes: () => 5e8 },
  );
  for (const check of ['machine', 'disk', 'TensorFlow']) {
    t.is(row(check).status, 'mend', check);
    t.truthy(row(check).remedy);
  }
  t.regex(row('TensorFlow').found, /\/nowhere/);
  t.regex(row('disk').found, /0\.5 GB free/);
});

test('GPUs are listed with their memory, and decide which TensorFlow is taken', async (t) => {
  const { row } = await examineFresh(ALL_TOOLS, {
    SMI: 'echo "0, NVIDIA H100 80GB HBM3, 81559, 550.54.15"; echo "1, NVIDIA L4, 23034, 550.54.15"',
  });
  t.is(row('GPUs').found, '0: NVIDIA H100 80GB HBM3, 80 GiB; 1: NVIDIA L4, 22 GiB; driver 550.54.15');
  t.regex(row('TensorFlow').found, /, gpu\)$/);
});

test('an NVIDIA driver that shows no GPU must be mended', async (t) => {
  const { row } = await examineFresh(ALL_TOOLS, { SMI: 'echo "NVIDIA-SMI has failed"; exit 9' });
  t.is(row('GPUs').status, 'mend');
  t.regex(row('GPUs').remedy!, /BRAID_DEVICE=cpu/);
});

test('the table has a line a row, and a remedy under those that need one', (t) => {
  const text = render([
    { check: 'disk', status: 'ok', found: '9 GB' },
    { check: 'tools', status: 'mend', found: 'missing: g++', remedy: 'install it' },
  ]);
  t.is(text, 'ok    disk   9 GB\nMEND  tools  missing: g++\n             -> install it\n1 must be mended.\n');
});

test('braid doctor --json gives the rows of this machine, and exits 1 only when one must be mended', (t) => {
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(ROOT, 'bin/braid.mjs'), 'doctor', '--json'], {
    encoding: 'utf8',
  });
  t.is(stderr, '');
  const rows: Row[] = JSON.parse(stdout);
  t.deepEqual(
    rows.map(({ check }) => check),
    CHECKS,
  );
  t.is(status, rows.some((row) => row.status === 'mend') ? 1 : 0);
});

test('a word that doctor does not know is refused', (t) => {
  const { status, stderr } = spawnSync(process.execPath, [join(ROOT, 'bin/braid.mjs'), 'doctor', '--jsno'], {
    encoding: 'utf8',
  });
  t.is(status, 1);
  t.regex(stderr, /no --jsno\.\n {2}Remedy: npx braid doctor \[--json\]/);
});
