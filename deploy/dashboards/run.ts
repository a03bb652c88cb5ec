/** Is it learning, how fast, and when is it done? */
import type { Dashboard } from './dashboard.ts';
import { mean, over, quantileOf, rate, value } from './queries.ts';

const step = value('braid_step');
const steps = value('braid_steps');

export const RUN: Dashboard = {
  name: 'run',
  title: 'Run',
  about: 'Progress, losses, accuracies, rate and time left of one training run.',
  rows: [
    {
      title: 'Progress',
      panels: [
        {
          kind: 'stat',
          title: 'Done',
          about: 'Steps committed, of all that the run has.',
          width: 6,
          unit: 'ratio',
          query: over(step, steps),
        },
        {
          kind: 'stat',
          title: 'Time left',
          about: 'For the training steps still to come, at the present rate; evaluations and checkpoints come on top.',
          width: 6,
          unit: 'seconds',
          query: value('braid_seconds_left'),
        },
        {
          kind: 'stat',
          title: 'Images a second',
          about: 'Training images of committed steps, over the last minute.',
          width: 4,
          unit: 'imagesPerSecond',
          query: rate('braid_images_total'),
        },
        { kind: 'stat', title: 'Step', about: 'Steps committed.', width: 4, unit: 'count', query: step },
        {
          kind: 'stat',
          title: 'Epoch',
          about: 'Epoch of the last committed step, from 0.',
          width: 4,
          unit: 'count',
          query: value('braid_epoch'),
        },
      ],
    },
    {
      title: 'Learning',
      panels: [
        {
          kind: 'chart',
          title: 'Losses',
          about:
            'Each term of the last committed step, nats, mean over the batch. Terms that distil grow with the ramp-up weight.',
          width: 12,
          unit: 'nats',
          lines: [{ legend: '{{term}}', query: value('braid_loss', { by: ['term'] }) }],
        },
        {
          kind: 'chart',
          title: 'Test accuracy',
          about:
            'On the whole test set, after each evaluation: every branch, their ensemble, and the fused classifier.',
          width: 12,
          unit: 'ratio',
          lines: [
            {
              legend: '{{classifier}}',
              query: value('braid_accuracy_ratio', { by: ['classifier'], where: { top: '1' } }),
            },
          ],
        },
        {
          kind: 'chart',
          title: 'Test loss',
          about:
            'Cross-entropy on the whole test set, nats. It rises while accuracy still does when a network grows overconfident.',
          width: 6,
          unit: 'nats',
          lines: [{ legend: '{{classifier}}', query: value('braid_test_loss', { by: ['classifier'] }) }],
        },
        {
          kind: 'chart',
          title: 'Learning rate',
          about: 'Of the last committed step.',
          width: 6,
          unit: 'count',
          lines: [{ legend: 'learning rate', query: value('braid_learning_rate') }],
        },
        {
          kind: 'chart',
          title: 'Ramp-up weight',
          about: 'Of the distillation terms, in the last committed step.',
          width: 6,
          unit: 'count',
          lines: [{ legend: 'weight', query: value('braid_distill_weight') }],
        },
        {
          kind: 'chart',
          title: 'Gradient norm',
          about: 'L2 norm of the reduced gradient. One that grows without end comes before losses that are not finite.',
          width: 6,
          unit: 'count',
          lines: [{ legend: 'L2 norm', query: value('braid_gradient_norm') }],
        },
      ],
    },
    {
      title: 'Speed',
      panels: [
        {
          kind: 'chart',
          title: 'Images a second',
          about: 'Training images of committed steps, over the last minute. It falls during evaluations.',
          width: 12,
          unit: 'imagesPerSecond',
          lines: [{ legend: 'images a second', query: rate('braid_images_total') }],
        },
        {
          kind: 'chart',
          title: 'Step time',
          about: 'Of whole training steps over the last minute: the mean, and what 95 of 100 stay below.',
          width: 12,
          unit: 'seconds',
          lines: [
            { legend: 'mean', query: mean('braid_step_seconds') },
            { legend: '95 %', query: quantileOf(0.95, 'braid_step_seconds') },
          ],
        },
      ],
    },
    {
      title: 'What happened',
      panels: [
        {
          kind: 'events',
          title: 'Events',
          about: 'The last ones; from a Prometheus: the alerts that fire.',
          width: 24,
        },
      ],
    },
  ],
};
