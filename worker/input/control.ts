/** What a pool and its tasks tell one another while a task runs: i32[2], shared. */

export type Control = Int32Array<SharedArrayBuffer>;

/** Places: 1 once the pool closes; how many tasks are running. */
export const CLOSING = 0;
export const RUNNING = 1;

export function newControl(): Control {
  return new Int32Array(new SharedArrayBuffer(8));
}
