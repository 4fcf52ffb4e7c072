import { Button } from '@mantine/core';
import { Component, type ReactNode } from 'react';
import { Refusal } from '../api';
import { Failure } from './Pieces';

/** In place of a page that fails, or whose code has gone with an older version of the console: why, and a way out. */
export class Boundary extends Component<{ children: ReactNode }, { error: Error | null }> {
  override state: { error: Error | null } = { error: null };

  static getDerivedStateFromError(error: Error): { error: Error } {
    return { error };
  }

  override render(): ReactNode {
    const { error } = this.state;
    if (!error) return this.props.children;
    return (
      <>
        <Failure error={new Refusal(0, 'This page cannot be shown', error.message)} />
        <Button mt="md" onClick={() => location.reload()}>
          Load it again
        </Button>
      </>
    );
  }
}
