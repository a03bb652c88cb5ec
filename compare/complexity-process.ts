/** The process behind complexity.ts: answers one message, and ends. */
import { asBraidError } from '../core/errors.ts';
import { complexityOf } from '../nn/complexity.ts';
import type { ComplexityAnswer, ComplexityRequest } from './complexity.ts';

process.once('message', (requests: ComplexityRequest[]) => {
  process.send!(answer(requests), () => process.exit());
});

function answer(requests: ComplexityRequest[]): ComplexityAnswer {
  try {
    return { complexities: requests.map(({ recipe, image, classes }) => complexityOf(recipe, image, classes)) };
  } catch (thrown) {
    const { code, message, remedy } = asBraidError(thrown);
    return { code, message, remedy };
  }
}
