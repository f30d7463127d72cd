import { Refusal, TorporAPI } from '../src/api';

jest.mock('@jupyterlab/services', () => ({
  ServerConnection: { makeRequest: (url: string, init: unknown, settings: any) => settings.answer(url, init) }
}));

const asked: [string, any][] = [];
const api = (status: number, text: string) =>
  new TorporAPI({
    baseUrl: 'http://here/user/',
    answer: async (url: string, init: any) => {
      asked.push([url, init]);
      return { ok: status < 400, status, statusText: 'Bad Gateway', text: async () => text };
    }
  } as any);
const refusal = async (answer: Promise<unknown>): Promise<Refusal> =>
  answer.then(
    () => {
      throw Error('it was not refused');
    },
    error => error
  );

beforeEach(() => void asked.splice(0));

test('requests go below api/torpor, with a body only where there is something to say', async () => {
  expect(await api(200, '[]').kernels()).toEqual([]);
  await api(200, '{}').restore('k', 'c', { discard: false, notebook: true });
  await api(200, '{}').diff('k', 'one', 'two');
  expect(asked).toEqual([
    ['http://here/user/api/torpor/kernels', { method: 'GET' }],
    [
      'http://here/user/api/torpor/kernels/k/checkpoints/c/restore',
      { method: 'POST', body: '{"discard":false,"notebook":true}' }
    ],
    ['http://here/user/api/torpor/kernels/k/checkpoints/two/diff?with=one', { method: 'GET' }]
  ]);
});

test('an empty answer is null', async () => expect(await api(204, '').cancel('k')).toBeNull());

test('what the server refuses is told with its reason, advice and name', async () => {
  const told = JSON.stringify({ reason: 'no', advice: 'wait', details: ['fd 3: no'], kind: 'Refused' });
  const error = await refusal(api(409, told).save('k'));
  expect([error.status, error.reason, error.advice, error.details, error.kind]).toEqual([
    409,
    'no',
    'wait',
    ['fd 3: no'],
    'Refused'
  ]);
});

test('a proxy that answers instead is told by its status', async () => {
  const error = await refusal(api(502, '<html>').save('k'));
  expect([error.reason, error.kind, error.details]).toEqual(['502 Bad Gateway', '', []]);
});
