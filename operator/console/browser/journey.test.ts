import { expect, type Locator, type Page } from '@playwright/test';
import { dump, load } from 'js-yaml';
import { readFileSync } from 'node:fs';
import { barriers, given, go, login, OUTPUT, test } from './support';

/** tests/e2e/journey.py has it: what is trained, and what the console's messages about mistakes say. */
interface Journey {
  namespace: string;
  token: string;
  /** The file of rows, and the same with a line that was cut off. */
  rows: string;
  broken: string;
  base: string;
  config: string;
  other: string;
  name: string;
  word: string;
  question: string;
  training: Record<string, number>;
  trainer: Resources;
  serving: Resources;
  engine: { dtype: string; maxModelLen: number; args: string[] };
  unknown: string;
  mapping: string;
}

interface Resources {
  requests: Record<string, string>;
  limits: Record<string, string>;
}

interface Body {
  spec: Record<string, Record<string, unknown>>;
}

const journey = JSON.parse(readFileSync(given('JOURNEY'), 'utf8')) as Journey;
const { name } = journey;
const again = `${name}-2`;
const path = (page: string) => `/${journey.namespace}/${page}`;

const field = (page: Page, of: string): Locator => page.locator(`[id="spec.${of}"]`);
const create = (page: Page): Locator => page.getByRole('button', { name: 'Create' });
const wrong = (page: Page, text: string): Locator => page.getByRole('region', { name: 'What it needs' }).getByRole('alert').filter({ hasText: text });

const kept: string[] = [];

/** How a page looks, and whom it keeps out. */
async function both(page: Page, what: string): Promise<void> {
  for (const scheme of ['dark', 'light'] as const) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.screenshot({ path: `${OUTPUT}/journey-${what}-${scheme}.png` });
    kept.push(...(await barriers(page)).map((one) => `${what}, ${scheme}: ${one}`));
  }
}

/** Change the YAML as one who types. */
async function edit(page: Page, change: (body: Body) => void): Promise<void> {
  const yaml = page.getByRole('textbox', { name: 'YAML' });
  const body = load(await yaml.inputValue()) as Body;
  change(body);
  await yaml.fill(dump(body));
}

async function open(page: Page, part: string): Promise<void> {
  const found = page.locator('details.part').filter({ has: page.locator(`> summary`, { hasText: new RegExp(`^${part}`) }) }).last();
  if (!(await found.evaluate((one: HTMLDetailsElement) => one.open))) await found.locator('> summary').click();
}

/** In place of the GPU that a starter asks for, memory. */
async function onCpu(page: Page, { requests, limits }: Resources): Promise<void> {
  await page.getByRole('button', { name: 'Remove nvidia.com/gpu' }).click();
  await open(page, 'Limits');
  await page.locator('details.part', { has: page.locator('> summary', { hasText: /^Limits/ }) }).last().getByRole('button', { name: 'Add an entry' }).click();
  await page.locator('[id="spec.resources.limits.newKey-key"]').fill('memory');
  await page.keyboard.press('Tab');
  await field(page, 'resources.limits.memory').fill(limits['memory'] ?? '');
  await edit(page, ({ spec }) => (spec['resources'] = { ...spec['resources'], requests }));
}

function found(pattern: string, text: string): string[] {
  const match = new RegExp(pattern).exec(text);
  if (!match) throw new Error(`nothing in ${text} is ${pattern}`);
  return match.slice(1);
}

test('with nothing but the browser, from a dataset to a chat', async ({ page }) => {
  await test.step('a token that was not copied whole is refused, and the whole one taken', async () => {
    await page.goto('/');
    await page.getByLabel('Kubernetes token').fill(journey.token.slice(0, -8));
    await page.keyboard.press('Enter');
    await expect(page.getByRole('alert')).toContainText('does not know this token');
    await login(page, journey.token, path('jobs'));
    await page.getByRole('link', { name: 'New job' }).click();
  });

  await test.step('a name is no title, and a file that was cut off no data', async () => {
    const called = page.getByRole('textbox', { name: 'Name', exact: true }).first();
    await called.fill(journey.word);
    await expect(wrong(page, 'metadata.name')).toContainText('lower case');
    await expect(create(page)).toBeDisabled();
    await called.fill(name);
    const data = page.getByRole('group', { name: 'Data from this machine' });
    await data.getByLabel('File of rows').setInputFiles(journey.broken);
    await expect(data.getByRole('alert')).toContainText(/train\.jsonl, line \d+: expected one row, a JSON object/);
    await both(page, 'broken-file');
    await data.getByLabel('File of rows').setInputFiles(journey.rows);
    await expect(data.getByRole('status')).toContainText(/24 rows with query, reply\. It is configmap:\/\/train-\w+\/train\.jsonl/);
    await expect(field(page, 'datasets.0.uri')).toHaveValue(/^configmap:\/\/train-\w+\/train\.jsonl$/);
  });

  await test.step('the form, a misspelt field of the YAML, and the estimate', async () => {
    await field(page, 'model.uri').fill(journey.base);
    await edit(page, ({ spec }) => {
      const { learningRate, ...rest } = journey.training;
      spec['training'] = { ...rest, learning_rate: learningRate };
    });
    const refused = wrong(page, 'unknown field');
    await expect(refused).toBeVisible();
    await both(page, 'misspelt');
    const [bad = '', good = ''] = found(journey.unknown, await refused.innerText());
    await edit(page, ({ spec }) => {
      const { [bad]: value, ...rest } = spec['training'] ?? {};
      spec['training'] = { ...rest, [good]: value };
    });
    await expect(refused).toBeHidden();
    await expect(field(page, 'training.learningRate')).toHaveValue(String(journey.training['learningRate']));
    await onCpu(page, journey.trainer);
    await page.getByLabel('config.json of the model').fill(journey.config);
    await expect(page.getByRole('region', { name: 'What it needs' })).toContainText(/[Ww]eights [\d.]+ [MG]iB/);
    await both(page, 'new');
    await create(page).click();
  });

  await test.step('the trainer does not know a column, and says which field maps it', async () => {
    await expect(page.getByRole('heading', { level: 1, name })).toBeVisible();
    const failed = page.getByRole('alert').filter({ hasText: 'DataError' });
    await expect(failed).toBeVisible({ timeout: 240_000 });
    await expect(failed).toContainText('What to do:');
    await both(page, 'failed');
    const [columns = '', known = '', mapped = ''] = found(journey.mapping, await failed.innerText());
    const names = [...columns.matchAll(/'(\w+)'/g)].map((one) => one[1] ?? '');
    const [column = ''] = names.filter((one) => one !== 'query');
    expect(known).not.toContain(`'${column}'`);
    await page.getByRole('link', { name: 'New like this' }).click();
    await expect(page.getByRole('textbox', { name: 'Name', exact: true }).first()).toHaveValue(again);
    await open(page, 'Columns');
    await field(page, `datasets.0.columns.${mapped}`).fill(column);
    await expect(page.getByRole('textbox', { name: 'YAML' })).toHaveValue(new RegExp(`${mapped}: ${column}`));
    await create(page).click();
  });

  await test.step('the loss falls while one looks', async () => {
    await expect(page.getByRole('heading', { level: 1, name: again })).toBeVisible();
    const curve = page.getByRole('img', { name: new RegExp(`^${again}: loss from`) });
    const last = async () => Number(/at step (\d+), least/.exec((await curve.getAttribute('aria-label')) ?? '')?.[1] ?? 0);
    await expect(curve).toBeVisible({ timeout: 240_000 });
    const before = await last();
    expect(before).toBeLessThan(journey.training['maxSteps'] ?? 0);
    await expect.poll(last, { timeout: 60_000 }).toBeGreaterThan(before);
    await both(page, 'training');
  });

  await test.step('it is deployed before it is done, under a name that clients can send', async () => {
    await page.getByRole('link', { name: 'Deploy', exact: true }).click();
    await expect(page.getByRole('heading', { level: 1, name: 'New ModelDeployment' })).toBeVisible();
    await expect(field(page, 'model.uri')).toHaveValue(journey.base);
    await expect(field(page, 'adapters.0.fineTuneJobRef.name')).toHaveValue(again);
    await page.getByRole('textbox', { name: 'Name', exact: true }).first().fill(name);
    await field(page, 'adapters.0.name').fill(`my ${name}`);
    await expect(wrong(page, 'spec.adapters[0].name')).toBeVisible();
    await expect(create(page)).toBeDisabled();
    await both(page, 'deploy');
    await field(page, 'adapters.0.name').fill(name);
    await open(page, 'Engine');
    await field(page, 'engine.dtype').selectOption(journey.engine.dtype);
    await field(page, 'engine.maxModelLen').fill(String(journey.engine.maxModelLen));
    await open(page, 'Args');
    for (const [at, one] of journey.engine.args.entries()) {
      await page.getByRole('button', { name: 'Add to args' }).click();
      await field(page, `engine.args.${at}`).fill(one);
    }
    await edit(page, ({ spec }) => (spec['resources'] = { ...journey.serving }));
    await create(page).click();
    await expect(page.getByRole('heading', { level: 1, name })).toBeVisible();
  });

  await test.step('meanwhile, the job beside another', async () => {
    await go(page, path('jobs'));
    const row = page.getByRole('row').filter({ has: page.getByRole('link', { name: again, exact: true }) });
    await expect(row).toContainText('Completed', { timeout: 240_000 });
    await both(page, 'jobs');
    for (const one of [again, journey.other]) await page.getByLabel(`Compare ${one}`, { exact: true }).check();
    await page.getByRole('button', { name: 'Compare 2' }).click();
    const batches = page.getByRole('row', { name: 'training.globalBatchSize' }).getByRole('cell');
    await expect(batches).toHaveText([String(journey.training['globalBatchSize']), '8']);
    const losses = async (of: string) => Number(await page.getByRole('row', { name: `${of} loss` }).getByRole('cell').first().innerText());
    await expect.poll(() => losses('last')).toBeGreaterThan(0);
    expect(await losses('last')).toBeLessThan((await losses('first')) / 2);
    await both(page, 'compare');
  });

  await test.step('the adapter joins the engine', async () => {
    await go(page, path('deployments'));
    const deployment = page.getByRole('region', { name, exact: true });
    await expect(deployment.getByRole('row', { name })).toContainText('Ready', { timeout: 300_000 });
    await both(page, 'deployments');
    await deployment.getByRole('link', { name: 'Playground' }).click();
  });

  await test.step('two models answer side by side, and only the trained one knows its name', async () => {
    await page.getByLabel('Left model', { exact: true }).last().selectOption(`${name}/base`);
    await page.getByLabel('Right model', { exact: true }).last().selectOption(`${name}/${name}`);
    await page.getByLabel('Temperature').fill('0');
    await page.getByLabel('Most tokens').fill('32');
    await page.getByLabel('Message', { exact: true }).fill(journey.question);
    await page.keyboard.press('Enter');
    const right = page.getByRole('log', { name: 'Answers of the right model' });
    const left = page.getByRole('log', { name: 'Answers of the left model' });
    await expect(right).toContainText(journey.word, { timeout: 60_000 });
    await expect(page.getByRole('button', { name: 'Clear' })).toBeVisible({ timeout: 60_000 });
    await expect(left).toContainText('first after');
    await expect(left).not.toContainText(journey.word);
    await both(page, 'playground');
  });

  await test.step('what is not needed any more goes', async () => {
    for (const one of [`modeldeployments/${name}`, `finetunejobs/${again}`, `finetunejobs/${name}`]) {
      await go(page, path(one));
      await page.getByRole('button', { name: 'Delete' }).click();
      await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click();
      await expect(page.getByRole('heading', { level: 1, name: /Jobs|Deployments/ })).toBeVisible();
    }
    await go(page, path('jobs'));
    await expect(page.getByRole('link', { name: journey.other, exact: true })).toBeVisible();
    await expect(page.getByRole('link', { name: again, exact: true })).toBeHidden();
  });

  expect(kept).toEqual([]);
});
