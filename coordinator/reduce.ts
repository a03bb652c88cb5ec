/** The workers' own sum of their gradients, asked for and metered, whatever the placement. */
import type { ReduceResponse } from '../proto/messages.ts';
import type { Crew } from './crew.ts';

/** @returns the workers' answers, and who is at fault where a sum is not finite, by rank */
export async function reduceGradients(
  crew: Crew,
  step: number,
  signal: AbortSignal,
): Promise<{ answers: ReduceResponse[]; culprits: number[] }> {
  const answers = await crew.each('reduce', step, signal, ({ worker }, call) => worker.reduce(crew.stamp(step), call));
  for (const { sentBytes, receivedBytes, deviceSeconds, inputSeconds } of answers) {
    crew.meter.computed(deviceSeconds, inputSeconds);
    crew.meter.moved('gradients', 'sent', sentBytes);
    crew.meter.moved('gradients', 'received', receivedBytes);
  }
  return { answers, culprits: answers.flatMap(({ culprit }, rank) => (culprit ? [rank] : [])) };
}
