/** How large networks are, asked of a short-lived process: TensorFlow's memory goes with it. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { BraidError, type ErrorCode } from '../core/errors.ts';
import type { Recipe } from '../core/recipe.ts';
import type { ImageShape } from '../input/dataset.ts';
import type { Complexity } from '../nn/complexity.ts';

export interface ComplexityRequest {
  recipe: Recipe;
  image: ImageShape;
  classes: number;
}

export type ComplexityAnswer = { complexities: Complexity[] } | { code: ErrorCode; message: string; remedy: string };

const CHILD = new URL('./complexity-process.ts', import.meta.url);

/** @throws BraidError what a network could not be built for; CANCELLED when `signal` aborts */
export async function complexitiesOf(requests: ComplexityRequest[], signal: AbortSignal): Promise<Complexity[]> {
  if (requests.length === 0) return [];
  signal.throwIfAborted();
  const child = fork(CHILD, { signal, stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
  let said = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    said += text;
  });
  let answer: ComplexityAnswer | undefined;
  child.once('message', (message) => {
    answer = message as ComplexityAnswer;
  });
  child.send(requests);
  try {
    await once(child, 'close');
  } catch (thrown) {
    signal.throwIfAborted();
    throw thrown;
  }
  signal.throwIfAborted();
  if (answer === undefined) throw new BraidError('DEVICE', `TensorFlow ended while it built the networks:\n${said}`);
  if ('code' in answer) throw new BraidError(answer.code, answer.message, { remedy: answer.remedy });
  return answer.complexities;
}
