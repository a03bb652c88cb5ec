/** Who takes part, what do they do, and who holds the others up? As readable with 2 workers as with 1,000. */
import type { Dashboard } from './dashboard.ts';
import { across, among, mean, over, plus, type Query, quantileOf, rate, recorded, top, value } from './queries.ts';

const WORST = 5;
const ROWS = 20;
const INSTANCE = ['instance'];
const LINK = { by: ['link'] };
const OF_A_STEP = 'compute|forward|method|backward|reduce|commit';

const stats = (metric: string) =>
  ['min', 'median', 'max'].map((stat) => ({ legend: stat, query: value(metric, { where: { stat } }) }));
const device = rate('braid_device_seconds_total');
const input = rate('braid_input_wait_seconds_total');

/** Mean time of the calls that compute, by worker. */
export const WORKER_COMPUTE = recorded(
  'braid:worker_compute_seconds:mean',
  mean('braid_worker_phase_seconds', { by: INSTANCE, where: { phase: 'compute|forward|backward' } }),
);
/** The rows of the table: who uses most memory. */
const chosen = top(
  ROWS,
  among(
    value('process_resident_memory_bytes', { by: INSTANCE }),
    value('braid_worker_step', { by: INSTANCE }),
    INSTANCE,
  ),
);
const column = (query: Query) => among(query, chosen, INSTANCE);

export const CLUSTER: Dashboard = {
  name: 'cluster',
  title: 'Cluster',
  about: 'Workers, phases, stragglers, traffic and memory of one training run.',
  rows: [
    {
      title: 'Workers',
      panels: [
        {
          kind: 'stat',
          title: 'Training',
          about: 'Workers that take part in the current generation.',
          width: 4,
          unit: 'count',
          query: value('braid_members', { where: { state: 'training' } }),
        },
        {
          kind: 'stat',
          title: 'Wanted',
          about: 'Workers that the recipe takes.',
          width: 4,
          unit: 'count',
          query: value('braid_members_wanted'),
        },
        {
          kind: 'stat',
          title: 'Waiting',
          about: 'Workers that have joined and wait for the next generation.',
          width: 4,
          unit: 'count',
          query: value('braid_members', { where: { state: 'waiting' } }),
        },
        {
          kind: 'stat',
          title: 'Generation',
          about: 'Number of the current membership: it grows whenever somebody comes or goes.',
          width: 4,
          unit: 'count',
          query: value('braid_generation'),
        },
        {
          kind: 'stat',
          title: 'Longest silence',
          about:
            'Since the last sign of life of the most silent member. Above cluster.heartbeatSeconds it may be frozen.',
          width: 4,
          unit: 'seconds',
          query: value('braid_longest_silence_seconds'),
          thresholds: { warning: 10, critical: 30 },
        },
        {
          kind: 'stat',
          title: 'Waiting for input',
          about: 'Part of the devices’ time in which they waited for decoded images.',
          width: 4,
          unit: 'ratio',
          query: over(input, plus(device, input)),
          thresholds: { warning: 0.1, critical: 0.3 },
        },
        {
          kind: 'chart',
          title: 'Members',
          about: 'Workers by state; waiting: for the next generation.',
          width: 8,
          unit: 'count',
          lines: [
            { legend: '{{state}}', query: value('braid_members', { by: ['state'] }) },
            { legend: 'wanted', query: value('braid_members_wanted') },
          ],
        },
        {
          kind: 'chart',
          title: 'Stragglers',
          about: 'Median time of the member that holds a phase up, while one does.',
          width: 8,
          unit: 'seconds',
          none: 'nobody holds the others up',
          lines: [
            { legend: 'rank {{rank}}, {{phase}}', query: value('braid_straggler_seconds', { by: ['rank', 'phase'] }) },
          ],
        },
        {
          kind: 'chart',
          title: 'Silence',
          about: 'Since the last sign of life of the members that have missed one, the most silent ones.',
          width: 8,
          unit: 'seconds',
          none: 'nobody is silent',
          lines: [
            {
              legend: 'worker {{member}} on {{host}}',
              query: top(WORST, value('braid_member_silent_seconds', { by: ['member', 'host'] })),
            },
          ],
        },
        {
          kind: 'table',
          title: 'Workers',
          about: `Each worker as of now; of more than ${ROWS}, those that use most memory.`,
          width: 24,
          by: INSTANCE,
          columns: [
            { title: 'step', unit: 'count', query: column(value('braid_worker_step', { by: INSTANCE })) },
            { title: 'generation', unit: 'count', query: column(value('braid_worker_generation', { by: INSTANCE })) },
            { title: 'compute', unit: 'seconds', query: column(WORKER_COMPUTE) },
            {
              title: 'device busy',
              unit: 'ratio',
              query: column(rate('braid_worker_device_seconds_total', { by: INSTANCE })),
            },
            {
              title: 'ready shards',
              unit: 'count',
              query: column(value('braid_worker_ready_shards', { by: INSTANCE })),
            },
            { title: 'memory', unit: 'bytes', query: column(value('process_resident_memory_bytes', { by: INSTANCE })) },
            {
              title: 'GPU memory',
              unit: 'bytes',
              query: column(value('braid_worker_gpu_memory_used_bytes', { by: INSTANCE })),
            },
            {
              title: 'event loop lag',
              unit: 'seconds',
              query: column(value('nodejs_eventloop_lag_p99_seconds', { by: INSTANCE })),
            },
          ],
        },
      ],
    },
    {
      title: 'Phases of a step',
      panels: [
        {
          kind: 'chart',
          title: 'Where the time goes',
          about: 'Seconds of each second that went into a phase, over all workers.',
          width: 8,
          unit: 'ratio',
          stacked: true,
          lines: [{ legend: '{{phase}}', query: rate('braid_phase_seconds_sum', { by: ['phase'] }) }],
        },
        {
          kind: 'chart',
          title: 'Slowest steps by phase',
          about: 'What 95 of 100 stay below, over the last minute.',
          width: 8,
          unit: 'seconds',
          lines: [
            {
              legend: '{{phase}}',
              query: recorded(
                'braid:phase_seconds:p95',
                quantileOf(0.95, 'braid_phase_seconds', { by: ['phase'], where: { phase: OF_A_STEP } }),
              ),
            },
          ],
        },
        {
          kind: 'chart',
          title: 'Spread between members',
          about:
            'Time that members took for the last call of a phase: the slowest and the median. The gap is what the others wait for.',
          width: 8,
          unit: 'seconds',
          lines: [
            {
              legend: '{{phase}}, {{stat}}',
              query: value('braid_member_phase_seconds', {
                by: ['phase', 'stat'],
                where: { phase: 'compute|forward|backward', stat: 'median|max' },
              }),
            },
          ],
        },
      ],
    },
    {
      title: 'Traffic',
      panels: [
        {
          kind: 'chart',
          title: 'Sent by workers',
          about: 'Payload bytes a second of all workers, by what they carry.',
          width: 8,
          unit: 'bytesPerSecond',
          stacked: true,
          lines: [{ legend: '{{link}}', query: rate('braid_bytes_total', { ...LINK, where: { direction: 'sent' } }) }],
        },
        {
          kind: 'chart',
          title: 'Received by workers',
          about: 'Payload bytes a second of all workers, by what they carry.',
          width: 8,
          unit: 'bytesPerSecond',
          stacked: true,
          lines: [
            { legend: '{{link}}', query: rate('braid_bytes_total', { ...LINK, where: { direction: 'received' } }) },
          ],
        },
        {
          kind: 'chart',
          title: 'Calls and streams',
          about: 'Calls to workers that have not been answered, and streams of shards that they read.',
          width: 8,
          unit: 'count',
          lines: [
            { legend: 'calls in flight', query: value('braid_calls_in_flight') },
            { legend: 'shard streams', query: value('braid_shard_streams') },
          ],
        },
      ],
    },
    {
      title: 'Memory and load',
      panels: [
        {
          kind: 'chart',
          title: 'Memory of workers',
          about: 'Resident memory. A maximum that grows without end is a leak.',
          width: 8,
          unit: 'bytes',
          lines: stats('braid_member_resident_bytes'),
        },
        {
          kind: 'chart',
          title: 'Event loop lag of workers',
          about: 'Longest lag between two signs of life. Above a second a worker hardly answers.',
          width: 8,
          unit: 'seconds',
          lines: stats('braid_member_event_loop_lag_seconds'),
        },
        {
          kind: 'chart',
          title: 'The coordinator',
          about: 'Event loop lag, 99 %. What the coordinator does not get to, every worker waits for.',
          width: 8,
          unit: 'seconds',
          lines: [
            {
              legend: 'event loop lag',
              query: recorded(
                'braid:coordinator_lag_seconds:p99',
                among(
                  value('nodejs_eventloop_lag_p99_seconds', { by: INSTANCE }),
                  value('braid_run_info', { by: INSTANCE }),
                  INSTANCE,
                ),
              ),
            },
          ],
        },
      ],
    },
    {
      title: 'Each worker',
      panels: [
        {
          kind: 'chart',
          title: 'Slowest workers',
          about: `Mean time to compute a shard, of the ${WORST} slowest, and the median of all.`,
          width: 24,
          unit: 'seconds',
          ofWorkers: true,
          lines: [
            { legend: '{{instance}}', query: top(WORST, WORKER_COMPUTE) },
            { legend: 'median', query: across(0.5, WORKER_COMPUTE) },
          ],
        },
      ],
    },
    {
      title: 'GPUs',
      optional: true,
      panels: [
        {
          kind: 'chart',
          title: 'GPU memory',
          about: `Part of each GPU’s memory that is in use, the ${WORST} fullest.`,
          width: 12,
          unit: 'ratio',
          ofWorkers: true,
          lines: [
            {
              legend: '{{instance}}',
              query: top(
                WORST,
                over(
                  value('braid_worker_gpu_memory_used_bytes', { by: INSTANCE }),
                  value('braid_worker_gpu_memory_total_bytes', { by: INSTANCE }),
                ),
              ),
            },
          ],
        },
        {
          kind: 'chart',
          title: 'GPU utilisation',
          about: 'Part of the time in which GPUs compute: the median, and a tenth of them stay below the lower line.',
          width: 12,
          unit: 'ratio',
          ofWorkers: true,
          lines: [
            { legend: 'median', query: across(0.5, value('braid_worker_gpu_utilisation_ratio', { by: INSTANCE })) },
            { legend: '10 %', query: across(0.1, value('braid_worker_gpu_utilisation_ratio', { by: INSTANCE })) },
          ],
        },
      ],
    },
  ],
};
