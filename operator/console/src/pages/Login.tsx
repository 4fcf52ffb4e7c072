import { Alert, Button, Code, Stack, Text, TextInput, Title } from '@mantine/core';
import { useState } from 'react';

/** What a header takes. */
const WHOLE = /^[\x21-\x7e]+$/;

/** Asks for a token. It stays in this tab, and goes nowhere but to the API server. */
export function Login({ why, enter }: { why: string; enter: (token: string) => void }) {
  const [text, setText] = useState('');
  const [bad, setBad] = useState(false);
  return (
    <main className="page" style={{ maxWidth: 460, paddingTop: '12vh', paddingInline: 16 }}>
      <form
        className="sheet"
        style={{ padding: 28 }}
        onSubmit={(event) => {
          event.preventDefault();
          if (WHOLE.test(text.trim())) enter(text.trim());
          else setBad(true);
        }}
      >
        <Stack>
          <div className="wordmark">
            <img src="./icon.svg" alt="" width={28} height={28} />
            <Title order={1} size="h3">
              tunesmith
            </Title>
          </div>
          {why && (
            <Alert color="red" role="alert">
              {why}
            </Alert>
          )}
          <TextInput
            type="password"
            label="Kubernetes token"
            description="The console acts with your own rights. The token stays in this tab."
            autoComplete="off"
            required
            value={text}
            error={bad ? 'A token has no spaces, and no characters beyond ASCII: copy it again' : undefined}
            onChange={(event) => {
              setBad(false);
              setText(event.currentTarget.value);
            }}
          />
          <Button type="submit">Log in</Button>
          <Text size="sm" className="quiet">
            <Code>kubectl create token ACCOUNT</Code> makes one for a service account. With a kubeconfig,{' '}
            <Code>tunesmith console</Code> needs none.
          </Text>
        </Stack>
      </form>
    </main>
  );
}
