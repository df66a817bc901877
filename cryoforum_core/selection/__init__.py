"""Which particles to keep: measures, criteria, and the choice by what it does to the map."""
