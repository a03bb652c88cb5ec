/** Ctrl-C, however many copies of it arrive. */
import { EventEmitter } from 'node:events';
import test from 'ava';
import { type InterruptSource, Interrupts } from '../cli/interrupts.ts';
import { asBraidError } from '../core/errors.ts';

function world() {
  const source = new EventEmitter();
  const clock = { ms: 1000 };
  let unrefs = 0;
  const channel = { unref: () => void unrefs++ };
  const interrupts = new Interrupts(Object.assign(source, { channel }) as InterruptSource, () => clock.ms);
  const state = () => [interrupts.orderly.aborted, interrupts.atOnce.aborted];
  return { source, clock, interrupts, state, unrefs: () => unrefs };
}

test('one Ctrl-C that arrives from the terminal, npm and the braid command is one request', (t) => {
  const { source, clock, state, interrupts } = world();
  source.emit('SIGINT', 'SIGINT', 2);
  clock.ms += 3;
  source.emit('message', { signal: 'SIGINT' }, undefined);
  clock.ms += 20;
  source.emit('SIGINT', 'SIGINT', 2);
  source.emit('message', { signal: 'SIGINT' }, undefined);
  t.deepEqual(state(), [true, false]);
  const reason = asBraidError(interrupts.orderly.reason);
  t.is(reason.code, 'CANCELLED');
  t.is(reason.message, 'stopped by SIGINT');
});

test('a second Ctrl-C means at once', (t) => {
  const { source, clock, state } = world();
  source.emit('SIGINT', 'SIGINT', 2);
  clock.ms += 400;
  source.emit('SIGINT', 'SIGINT', 2);
  t.deepEqual(state(), [true, true]);
});

test('a signal to the braid command alone reaches this process over the channel', (t) => {
  const { source, state, interrupts } = world();
  source.emit('message', { signal: 'SIGTERM' }, undefined);
  t.deepEqual(state(), [true, false]);
  t.is(asBraidError(interrupts.orderly.reason).message, 'stopped by SIGTERM');
});

test('kill -9 of the braid command ends this process in good order', (t) => {
  const { source, state, interrupts } = world();
  source.emit('disconnect');
  t.deepEqual(state(), [true, false]);
  t.regex(asBraidError(interrupts.orderly.reason).message, /killed/);
});

test('listening keeps no process alive', (t) => {
  const { unrefs } = world();
  t.is(unrefs(), 1);
});
