/** What has gone wrong, what did it cost, and is the state safe? */
import type { Dashboard } from './dashboard.ts';
import { across, age, mean, over, rate, top, total, value } from './queries.ts';

const INSTANCE = ['instance'];
const decoded = rate('braid_worker_decoded_images_total', { by: INSTANCE });

export const FAULTS: Dashboard = {
  name: 'faults',
  title: 'Faults and data',
  about: 'Lost workers, retries, errors, checkpoints, and the input of one training run.',
  rows: [
    {
      title: 'Since the coordinator began',
      panels: [
        {
          kind: 'stat',
          title: 'Workers lost',
          about: 'Workers that went without having asked to.',
          width: 4,
          unit: 'count',
          query: total('braid_workers_lost_total'),
          thresholds: { warning: 1 },
        },
        {
          kind: 'stat',
          title: 'Retries',
          about: 'Generations that ended by a fault and were followed by another.',
          width: 4,
          unit: 'count',
          query: value('braid_retries_total'),
          thresholds: { warning: 1, critical: 10 },
        },
        {
          kind: 'stat',
          title: 'Steps left out',
          about: 'Steps whose update was not finite.',
          width: 4,
          unit: 'count',
          query: value('braid_skipped_steps_total'),
          thresholds: { warning: 1 },
        },
        {
          kind: 'stat',
          title: 'Bad samples',
          about: 'Samples that could not be used; others stood in for them.',
          width: 4,
          unit: 'count',
          query: value('braid_bad_samples_total'),
          thresholds: { warning: 1 },
        },
        {
          kind: 'stat',
          title: 'Checkpoint age',
          about: 'Since the newest checkpoint: what a restart would do again.',
          width: 4,
          unit: 'seconds',
          query: age('braid_checkpoint_timestamp_seconds'),
        },
        {
          kind: 'stat',
          title: 'Failed checkpoints',
          about: 'Checkpoints that could not be written.',
          width: 4,
          unit: 'count',
          query: value('braid_checkpoint_failures_total'),
          thresholds: { warning: 1, critical: 1 },
        },
      ],
    },
    {
      title: 'Faults',
      panels: [
        {
          kind: 'events',
          title: 'Events',
          about: 'The last ones; from a Prometheus: the alerts that fire.',
          width: 24,
        },
        {
          kind: 'chart',
          title: 'Workers lost',
          about:
            'In all, by why: disconnected (its process or machine ended), frozen (no sign of life), timeout (a call took far too long), failed (its device did).',
          width: 8,
          unit: 'count',
          lines: [{ legend: '{{reason}}', query: total('braid_workers_lost_total', { by: ['reason'] }) }],
        },
        {
          kind: 'chart',
          title: 'Errors',
          about: 'What ended or disturbed the run, in all, by error code.',
          width: 8,
          unit: 'count',
          none: 'none so far',
          lines: [{ legend: '{{code}}', query: total('braid_errors_total', { by: ['code'] }) }],
        },
        {
          kind: 'chart',
          title: 'Generations',
          about: 'Memberships so far, and those that ended by a fault.',
          width: 8,
          unit: 'count',
          lines: [
            { legend: 'generation', query: value('braid_generation') },
            { legend: 'retries', query: value('braid_retries_total') },
          ],
        },
      ],
    },
    {
      title: 'Checkpoints',
      panels: [
        {
          kind: 'chart',
          title: 'Time to write',
          about:
            'From reading a state to its checkpoint being there to stay, mean over the last minute. Training goes on meanwhile.',
          width: 8,
          unit: 'seconds',
          lines: [{ legend: 'mean', query: mean('braid_checkpoint_seconds') }],
        },
        {
          kind: 'chart',
          title: 'Time that training stood still',
          about:
            'Part of the time that training stood still to read states, or for a checkpoint that was still being written.',
          width: 8,
          unit: 'ratio',
          lines: [{ legend: 'standing still', query: rate('braid_checkpoint_stall_seconds_total') }],
        },
        {
          kind: 'chart',
          title: 'Size',
          about: 'Of the newest checkpoint.',
          width: 8,
          unit: 'bytes',
          lines: [{ legend: 'newest', query: value('braid_checkpoint_size_bytes') }],
        },
      ],
    },
    {
      title: 'Input',
      panels: [
        {
          kind: 'chart',
          title: 'Shards ready',
          about: 'Decoded shards that wait for workers’ devices. At 0 a device waits for its input.',
          width: 8,
          unit: 'count',
          lines: ['min', 'median', 'max'].map((stat) => ({
            legend: stat,
            query: value('braid_member_ready_shards', { where: { stat } }),
          })),
        },
        {
          kind: 'chart',
          title: 'Devices',
          about: 'Seconds a second that all devices together computed, and waited for images.',
          width: 8,
          unit: 'count',
          lines: [
            { legend: 'computing', query: rate('braid_device_seconds_total') },
            { legend: 'waiting for images', query: rate('braid_input_wait_seconds_total') },
          ],
        },
        {
          kind: 'chart',
          title: 'Bad samples',
          about: 'Samples a second that could not be used.',
          width: 8,
          unit: 'perSecond',
          lines: [{ legend: 'bad samples', query: rate('braid_bad_samples_total') }],
        },
        {
          kind: 'chart',
          title: 'Images decoded',
          about: 'Images a second that a worker decodes and augments: the median, and the 5 fastest.',
          width: 12,
          unit: 'imagesPerSecond',
          ofWorkers: true,
          lines: [
            { legend: 'median', query: across(0.5, decoded) },
            { legend: '{{instance}}', query: top(5, decoded) },
          ],
        },
        {
          kind: 'chart',
          title: 'Time to decode an image',
          about: 'Of one input thread, mean over all workers.',
          width: 12,
          unit: 'seconds',
          ofWorkers: true,
          lines: [
            {
              legend: 'mean',
              query: over(rate('braid_worker_decode_seconds_total'), rate('braid_worker_decoded_images_total')),
            },
          ],
        },
      ],
    },
  ],
};
