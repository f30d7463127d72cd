import { part, Words } from '../src/words';

const english: any = {
  languageCode: 'en_US',
  load: () => ({ __: (text: string, ...values: unknown[]) => values.reduce<string>((all, value, at) => all.replace(`%${at + 1}`, String(value)), text) })
};
const words = new Words(english);
const checkpoint = (known: object): any => ({ name: '', reason: '', execution_count: 0, about: null, ...known });

test.each([
  [0, '0 B'],
  [1023, '1,023 B'],
  [1024, '1.0 KiB'],
  [1536 * 1024, '1.5 MiB'],
  [4 * 1024 ** 3, '4.0 GiB'],
  [5000 * 1024 ** 4, '5,000.0 TiB']
])('%d bytes', (bytes, text) => expect(words.size(bytes)).toBe(text));

test('a checkpoint is called by its name, its reason or its last cell', () => {
  expect(words.title(checkpoint({ name: 'mine' }))).toBe('mine');
  expect(words.title(checkpoint({ reason: 'idle' }))).toBe('Parked when idle');
  expect(words.title(checkpoint({ execution_count: 3 }))).toBe('After cell [3]');
  expect(words.title(checkpoint({}))).toBe('Before the first cell');
});

test('before a going back it is called by where that went, if that is known', () => {
  const before = checkpoint({ reason: 'going-back', about: 'a' });
  expect(words.title(before)).toBe('Before going back');
  expect(words.title(before, id => (id === 'a' ? checkpoint({ name: 'mine' }) : undefined))).toBe(
    'Before going back to “mine”'
  );
});

test('no title stands in a title in a title', () => {
  const before = checkpoint({ reason: 'going-back', about: 'a', created_ns: Date.now() * 1e6 });
  expect(words.called(checkpoint({ name: 'mine' }))).toBe('“mine”');
  expect(words.called(before)).toMatch(/^the state of [\d:]+/);
  expect(words.title(before, () => before)).toMatch(/^Before going back to the state of [\d:]+/);
  expect(words.short(before.created_ns).length).toBeLessThan(words.moment(before.created_ns).length);
});

test('a moment of another day has its date', () => {
  const now = Date.now();
  expect(words.moment((now - 3 * 86_400_000) * 1e6)).toContain(',');
  expect(words.moment(now * 1e6)).not.toContain(',');
});

test('progress is known when the size is', () => {
  const operation = (done: number, total: number): any => ({ doing: 'saving', done, total });
  expect(part(operation(0, 0))).toBeUndefined();
  expect(part(operation(1, 4))).toBe(0.25);
  expect(part(operation(5, 4))).toBe(1);
});

test('a language that Intl does not know is that of the browser', () => {
  expect(new Words({ ...english, languageCode: 'no language' }).size(2048)).toMatch(/2[.,]0 KiB/);
});
