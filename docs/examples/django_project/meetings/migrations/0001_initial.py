import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = ()

    operations = (
        migrations.CreateModel(
            name="Meeting",
            fields=[
                ("id", models.SlugField(primary_key=True, serialize=False)),
            ],
        ),
        migrations.CreateModel(
            name="Participation",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("user_id", models.CharField(max_length=100)),
                ("welcomed", models.BooleanField(default=False)),
                ("meeting", models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, to="meetings.meeting")),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("meeting", "user_id"), name="a_user_joins_once")],
            },
        ),
    )
